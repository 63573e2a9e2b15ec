"""Measures of a classifier beside its accuracy: a confusion matrix, and F1 by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model's predictions are worth.

    Attributes:
        loss: mean loss, in nats.
        accuracy: share of the predictions that are right.
        confusion: for each class, a row with the number of its examples by predicted class. None:
            the task has no classes.
        answers: scores of generated answers by name (`answer_scores`). Default: none, the task or
            the occasion generates none.
    """

    loss: float
    accuracy: float
    confusion: tuple[tuple[int, ...], ...] | None = None
    answers: Mapping[str, float] = field(default_factory=dict)


def by_class(measured: Measured, labels: Sequence[str]) -> dict[str, Any]:
    """Return "macro_f1", "classes" and "confusion", as plain values; empty without classes.

    A class has precision, recall, F1 and its number of examples; a quotient of nothing is 0. The
    macro F1 is the mean over the classes that occur, in truth or as predictions (Opitz and Burst,
    arXiv 1911.03347).

    Args:
        measured: the model's predictions.
        labels: the names of the classes, in the order of the matrix.
    """
    matrix = measured.confusion
    if matrix is None:
        return {}
    classes: dict[str, Mapping[str, float]] = {}
    for number, label in enumerate(labels):
        right = matrix[number][number]
        there = sum(matrix[number])
        found = sum(row[number] for row in matrix)
        if there or found:
            classes[label] = {
                "precision": right / found if found else 0.0,
                "recall": right / there if there else 0.0,
                "f1": 2 * right / (there + found),
                "examples": there,
            }
    return {
        "macro_f1": sum(one["f1"] for one in classes.values()) / len(classes),
        "classes": classes,
        "confusion": {"labels": list(labels), "rows": [list(row) for row in matrix]},
    }


def worth(measured: Measured) -> dict[str, Any]:
    """Return accuracy, loss and scores of answers.

    A loss that is not finite is None, as JSON cannot hold it.
    """
    loss = measured.loss if math.isfinite(measured.loss) else None
    return {"accuracy": measured.accuracy, "loss": loss, **measured.answers}

"""Measures a saved model on a file, as its run measured it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .examples import Example
from .measures import by_class, worth
from .models import encode, working
from .saved_model import SavedModel


def evaluate(opened: SavedModel, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the measures of a run's summary: accuracy, loss, scores of answers, and by class.

    Args:
        opened: the model.
        examples: the examples, with their labels or answers.
    """
    name = str(opened.folder)
    encoded = encode(name, opened.task, opened.model, examples)
    measured = opened.task.measure(opened.model, encoded)
    with working(name, "generation"):
        answers = opened.task.score_answers(opened.model, encoded)
    return {
        "examples": len(examples),
        **worth(measured),
        **answers,
        **by_class(measured, opened.task.classes),
        "digest": opened.saved.digest,
    }

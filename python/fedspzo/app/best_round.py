"""Chooses the round whose weights are kept, and the round after which a run stops early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def best_round(rows: Sequence[Row], *, by_loss: bool) -> int:
    """Return the first of the best rounds among those that were evaluated.

    The best has the highest accuracy, and of several the lowest loss.

    Args:
        rows: a run's rows, with the "loss" and "accuracy" of an evaluation, or None.
        by_loss: the loss alone decides.
    """
    evaluated = [row for row in rows if row["loss"] is not None]
    if not evaluated:
        return int(rows[-1]["round"])
    return int(min(evaluated, key=lambda row: _rank(row, by_loss))["round"])


def out_of_patience(rows: Sequence[Row], patience: int, *, by_loss: bool) -> bool:
    """Tell whether the last `patience` evaluations brought no better round.

    An evaluation without a finite loss counts, as it is no better one.

    Args:
        rows: as in `best_round`; the last one is of the round that has just ended.
        patience: number of evaluations.
        by_loss: as in `best_round`.
    """
    best = best_round(rows, by_loss=by_loss)
    waited = [row for row in rows if row["accuracy"] is not None and row["round"] > best]
    return rows[-1]["accuracy"] is not None and len(waited) >= patience


def _rank(row: Row, by_loss: bool) -> tuple[float, float]:
    return (0.0 if by_loss else -row["accuracy"], row["loss"])

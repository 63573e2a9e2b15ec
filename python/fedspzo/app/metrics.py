"""The rows of metrics.jsonl: one dict for each round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedspzo.federated import RoundResult

Row = dict[str, Any]


def as_row(result: RoundResult) -> Row:
    """Return a round's line of metrics.jsonl.

    `loss` and `accuracy` are held-out values, and None between evaluations. Numbers that are not
    finite become None, as JSON cannot hold them.
    """
    row = asdict(result)
    row["train_loss"] = row.pop("loss")
    row["loss"] = row.pop("eval_loss")
    row["clients"] = list(result.clients)
    if result.lr is None:
        del row["lr"]
    if result.epsilons is None:
        del row["epsilons"]
    else:
        row["epsilons"] = [
            epsilon if math.isfinite(epsilon) else None for epsilon in result.epsilons
        ]
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            row[key] = None
    return row


def largest_epsilon(row: Mapping[str, Any]) -> float:
    """Return the largest epsilon that a client has spent, by a row or summary; inf if unbounded."""
    return max(math.inf if epsilon is None else epsilon for epsilon in row["epsilons"])

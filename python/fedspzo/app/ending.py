"""Judges how a run ended: one line for a run that did not learn, with what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .config import Config

MOST_SKIPPED = 0.5
"""Largest share of steps that a sound run skips."""


def fault(summary: Mapping[str, Any], config: Config, examples: int) -> str | None:
    """Return one line about a run that ended badly, with the remedy. Return None if it did not.

    A loss that rose by less than its standard error did so by chance. The standard error of a mean
    of n losses is taken to be their mean / sqrt(n), as if they were exponentially distributed.

    Args:
        summary: the last line of metrics.jsonl.
        config: the run's config.
        examples: number of examples on which the loss was measured.
    """
    federation = config.federation
    rounds = summary["rounds"]  # fewer than planned if patience ended the run
    steps = rounds * federation.participants * federation.local_steps
    start, end = summary["zero_shot_loss"], summary["loss"]
    if summary["skipped"] > MOST_SKIPPED * steps:
        what = (
            f"{summary['skipped']} of {steps} steps were skipped, as their losses were not finite"
        )
    elif not _finite(end):
        what = "the loss at the end is not finite"
    elif config.keeps_best and summary["kept_round"] == 0:
        what = "no round was better than the base on the validation examples"
    elif not _finite(start):
        return None
    elif end > start + abs(start) / math.sqrt(examples):
        what = f"the loss rose from {start:.4g} to {end:.4g}"
    else:
        return None
    return f"the run ended badly: {what}; {_remedy(config)}"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _remedy(config: Config) -> str:
    if config.model.dtype == "float16":
        return 'try [model] dtype = "bfloat16" or "float32"'
    if config.privacy is not None:
        return "try a smaller [optimizer] lr, or a smaller noise_multiplier"
    if config.optimizer.lr != "auto":
        return 'try [optimizer] lr = "auto", or a smaller rate'
    return "try a larger [federation] batch_size, or more rounds, and look at the data"

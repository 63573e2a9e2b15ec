"""Check the arguments of `SPZO` as it is built, and choose its estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch.distributed as dist

from fedspzo import estimators
from fedspzo.blocks.cut import Blocks
from fedspzo.choices import EvaluationMode, Rounding, Sides, Stream
from fedspzo.estimators import Estimator
from fedspzo.estimators.anchored import Anchored
from fedspzo.privacy import Mechanism, public_setting


def check_arguments(
    *,
    lr: float | Sequence[float] | str,
    rounding: Rounding | None,
    evaluation: EvaluationMode | None,
    stream: Stream,
    scratch_bytes: int | None,
    newton: bool | None,
    privacy: Mechanism | None,
    process_group: dist.ProcessGroup | None,
) -> None:
    """Check arguments of `SPZO`.

    Raises:
        ValueError: one is wrong or does not go with another; the message names it.
    """
    if rounding not in (None, "nearest", "stochastic"):
        raise ValueError(f"rounding is {rounding!r}; pass 'nearest' or 'stochastic'")
    if evaluation not in (None, "in_place", "layerwise"):
        raise ValueError(f"evaluation is {evaluation!r}; pass 'in_place' or 'layerwise'")
    if stream not in get_args(Stream):
        raise ValueError(f"stream is {stream!r}; pass 'normal-v1' or 'rademacher-v1'")
    if scratch_bytes is not None and scratch_bytes < 1:
        raise ValueError(f"scratch_bytes is {scratch_bytes!r}; pass an int of at least 1")
    if isinstance(lr, str) and lr != "auto":
        raise ValueError(f"lr is {lr!r}; pass a number, one a block, or 'auto'")
    if privacy is not None and (public := public_setting(lr, newton)):
        raise ValueError(public)
    if process_group is not None and privacy is not None:
        raise ValueError("process_group is given with privacy; leave one of them out")


def find_estimator(
    name: str | None, blocks: Blocks | None, groups: int, sides: Sides | None, newton: bool | None
) -> type[Estimator]:
    """Return the class of an estimator that fits the other arguments of `SPZO`.

    Args:
        name: the estimator's name. None: "anchored" if there is something to replay, else "mezo".
        blocks: the blocks of a network, or None.
        groups: number of param groups.
        sides: "one", "two" or None.
        newton: the last block takes Newton steps.

    Raises:
        ValueError: there is no such estimator, or it does not fit.
    """
    if name is None:
        replayed = blocks is not None and (groups > 1 or blocks.frozen > 0)
        name = "anchored" if replayed else "mezo"
    kind = estimators.find(name)
    kind(sides=sides or "two", perturbations=(2,) * groups)  # raises if they do not fit
    if newton and not issubclass(kind, Anchored):
        raise ValueError(f"newton is True, but estimator is {name!r}; pass estimator='anchored'")
    return kind

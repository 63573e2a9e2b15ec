"""What a step of `SPZO` did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did. A tuple "a block" has an entry for each param group.

    Attributes:
        step: the step's number, from 0.
        loss: the loss at theta; where the estimator does not evaluate it, the mean where the last
            block is as it is, or over all points.
        losses: the loss at every point, in the order of evaluation. Of a private step they are not
            private, nor is `loss`: means over its batch, NaN where that was empty.
        seeds: a block, its directions' seeds.
        gradients: a block, its directions' projected gradients, float32 values; zeros if skipped.
        coefficients: a block, what was added along each direction; zeros if skipped or rejected.
        rounding_seed: of the update's stochastic rounding; None when rounding to nearest.
        forwards: the evaluations' cost, in full forward passes.
        skipped: a loss or gradient was not finite, and the weights were put back as they were.
        lr: the learning rate of each block.
        ratio: with lr="auto", where it was looked at: the batch's change of loss over the
            predicted one.
        undone: with lr="auto": "step": the loss rose, and the weights were put back; "steps":
            training diverged, and the update is the negative of the last steps'.
    """

    step: int
    loss: float
    losses: tuple[float, ...]
    seeds: tuple[tuple[int, ...], ...]
    gradients: tuple[tuple[float, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]
    rounding_seed: int | None
    forwards: float
    skipped: bool
    lr: tuple[float, ...] = ()
    ratio: float | None = None
    undone: str | None = None


def terms_of(seeds: Sequence[int], coefficients: Sequence[float]) -> dict[int, float]:
    """A block's update without what adds nothing."""
    return {seed: c for seed, c in zip(seeds, coefficients, strict=True) if c != 0}

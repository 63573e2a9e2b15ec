"""The report of a step of `SPZO`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedspzo.choices import Stream


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Reports one step: its losses, its directions and its update.

    Attributes:
        step: the step's number, from 0.
        loss: the loss at theta. If the estimator does not evaluate it: the mean over the points
            where the last block is not moved, or else over all points.
        losses: the loss at every point, in the order of evaluation. In a private step neither
            these nor `loss` are private: each is a mean over the batch, NaN if that was empty.
        seeds: for each block, the seeds of its directions.
        gradients: for each block, the projected gradients of its directions, float32 values;
            zeros if skipped.
        coefficients: for each block, the number that was added along each direction; zeros if
            skipped.
        rounding_seed: the seed of the update's stochastic rounding; None if rounded to nearest.
        forwards: the cost of the evaluations, in full forward passes.
        skipped: a loss or gradient was not finite, and the weights were put back as they were.
        lr: the learning rate of each block.
        followed: for each block, the numbers that the update follows: the projected gradients,
            unless the block takes a Newton step.
        undone: training diverged with lr="auto", and the update is the negative of the last
            steps'.
        stream: the noise stream of the directions.
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
    undone: bool = False
    followed: tuple[tuple[float, ...], ...] = ()
    stream: Stream = "normal-v1"


def terms_of(seeds: Sequence[int], coefficients: Sequence[float]) -> dict[int, float]:
    """Return a block's update, seed to coefficient, without the terms that are zero."""
    return {seed: c for seed, c in zip(seeds, coefficients, strict=True) if c != 0}

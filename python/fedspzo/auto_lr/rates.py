"""Compute learning rates from block statistics, by a pure function.

A block's rate is the largest that two bounds allow. With d weights, P directions and the root
mean square g of their projected gradients:

* Size: a step moves a block by a few percent of its weights at most, as its noise adds up. The
  update has the norm lr g sqrt(d / P).
* Curvature, if the block shows it: the rate is a small part of the one that is best for a single
  step. That is P / trace(H) where the noise of the directions dominates.

A block that takes Newton steps (`fedspzo.auto_lr.newton`) has a rate that follows from its
eigenvalues instead. In the long run rates fall, so that the noise that they add has a bound.

The bounds are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .block_statistics import BlockStatistics
from .constants import (
    CURVATURE,
    FALL_POWER,
    LEARNING_TURNS,
    NEWTON,
    SIZE,
    SIZE_LAST,
    START,
    STEADY_TURNS,
)

_Role = Literal["only", "led", "last"]
"""A block's role: an only block, one that the last block leads, or the last of several."""


def newton_damping(lr: float, count: int) -> float:
    """Return the damping with which a Newton step along `count` directions has the rate `lr`.

    Where the curvature is far below it, the step is the plain one, -lr g / count. Where it is far
    above, the step is `NEWTON` of a Newton step.
    """
    return NEWTON * count / lr


@dataclass(frozen=True, kw_only=True)
class RateSettings:
    """Settings of a policy that the rates depend on, besides the block statistics.

    A federation's policy takes a round for a step. A round's update is the sum of `local_steps`
    means over `clients` directions. It has local_steps / clients times the noise of one step, in
    squared norm. If that is less than 1, the bounds on size and curvature allow as much more (the
    latter at most the stable rate 1 / trace). When rates fall, each local step counts as a turn.

    Attributes:
        last_leads: the blocks are those of a network, whose last one leads the others. False: they
            are just groups, each bounded like an only block.
        after_frozen: an only block comes after frozen layers, and is bounded like a last one.
        clients: effective number of clients over whose directions an update is the mean.
        local_steps: number of steps whose sum an update is.
    """

    last_leads: bool
    after_frozen: bool = False
    clients: float = 1.0
    local_steps: int = 1

    @property
    def noise_reduction(self) -> float:
        """The noise of one step over that of an update, in squared norm."""
        return self.clients / self.local_steps


def rates(
    blocks: Sequence[BlockStatistics], settings: RateSettings, factor: float = 1.0
) -> tuple[float, ...]:
    """Return the learning rate of each block.

    Args:
        blocks: the statistics of each block.
        settings: the policy's settings.
        factor: multiplies all rates, those of blocks without a turn too.
    """
    return tuple(
        factor * _fall(stats, role, settings) * _bound(stats, role, settings)
        if stats.turns
        else factor * START
        for stats, role in zip(blocks, _roles(len(blocks), settings), strict=True)
    )


def _roles(count: int, settings: RateSettings) -> list[_Role]:
    if not settings.last_leads or (count == 1 and not settings.after_frozen):
        return ["only"] * count
    led: list[_Role] = ["led"] * (count - 1)
    return [*led, "last"]


def _fall(stats: BlockStatistics, role: _Role, settings: RateSettings) -> float:
    """Return the factor by which a block's rate has fallen in the long run, in (0, 1]."""
    if role != "led" and not stats.takes_newton_steps:
        return 1.0
    # the first turns are those of the steps before the first round
    turns = stats.turns + max(0, stats.turns - LEARNING_TURNS) * (settings.local_steps - 1)
    return math.pow(min(1.0, STEADY_TURNS / max(1, turns)), FALL_POWER)


def _bound(stats: BlockStatistics, role: _Role, settings: RateSettings) -> float:
    """Return the largest rate that the bounds allow."""
    count = stats.directions
    learned = min(stats.turns, LEARNING_TURNS)
    trace = (stats.trace_sum or 0.0) / learned
    if stats.takes_newton_steps:
        return NEWTON * count / max(stats.smoothed_eigenvalue, trace)
    gain = max(1.0, math.sqrt(settings.noise_reduction))
    square = max(stats.square_sum / learned, stats.smoothed_square)
    size = SIZE_LAST if role == "last" else SIZE
    bounds = []
    if stats.weight_rms and square:
        bounds.append(gain * size * stats.weight_rms * math.sqrt(count / square))
    if trace > 0:
        # the trace may all be in one direction
        bounds.append(min(1.0, gain * CURVATURE * count) / trace)
    return min((bound for bound in bounds if bound), default=START)

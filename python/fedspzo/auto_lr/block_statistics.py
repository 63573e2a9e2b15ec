"""What a block's turns have shown with `lr="auto"`, and the rate that this allows.

A block's first turns set its rate, as large as three bounds let it be; their constants were chosen
on the problems of `benchmarks/compute_to_target.py`:

* size: a step moves a block by a few percent of its weights at most, as its noise adds up. The
  update of P directions has the norm lr |g| sqrt(d / P). This one is kept to ever after.
* worth: a step that moves a block by the share r of its weights has to promise a fall of the loss
  by r^2 / WORTH; it promises lr |g|^2.
* curvature, of the blocks whose evaluations are cheap: the rate is a small part of the one that is
  best for a single step, P / trace(H) where noise dominates.

Where it costs no more than a pass to know how the loss bends along the last block's directions,
that takes the place of all three for it: its steps are damped Newton steps
(`fedspzo.auto_lr.newton`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START = 1e-4
"""A block's rate where nothing bounds it."""
LEARN = 8
"""A block's steps that set its rate, each by the mean over the steps so far."""
LARGEST_ONLY, LARGEST, LARGEST_LAST = 0.03, 0.045, 0.25
"""The largest step: the norm of a block's update over that of its weights; of a network that is one
block, of a block that others lead, and of the last one, which leads: a new head is small at first,
and no worth bounds it."""
WORTH = 0.14
"""In 1 / nats; see above."""
STIFF = 1 / 32
"""The part of the rate that is best for a single step."""
NEWTON, FARTHEST = 0.5, 1.0
"""The part of a damped Newton step that is taken, as half of a batch's gradient may be its own; and
the norm of the longest one over that of the block's weights, as all of it may be."""
QUICK = 0.75
"""Smoothing of a block's squared gradients, a turn."""


@dataclass
class BlockStatistics:
    """What a block's turns have shown.

    Attributes:
        size: its root mean square weight, at the start.
        turns: how many there were.
        squares: the sum over the first `LEARN` of the mean squared projected gradient; of a block
            that takes Newton steps, of the gradient times the damped one, here and in `lately`.
        traces: the sum over these of the Hessian's estimated trace; None where not known.
        lately: the smoothed mean squared projected gradient.
        bend: the smoothed typical size of the eigenvalues of the Hessian along its directions; 0
            where they are not known. `traces` then sums these sizes.
        rested: steps since its last turn.
        unseen: turns since the trust ratio of one was looked at.
        wait: steps from one turn to the next.
    """

    size: float
    turns: int = 0
    squares: float = 0.0
    traces: float | None = 0.0
    lately: float = 0.0
    bend: float = 0.0
    rested: int = 0
    unseen: int = 0
    wait: int = 1

    def add(self, square: float, trace: float | None) -> None:
        """Take note of a turn."""
        self.lately += self._news * (square - self.lately)
        self.rested = 0
        self.unseen += 1
        self.turns += 1
        if self.turns <= LEARN:
            self.squares += square
            known = self.traces
            self.traces = None if trace is None or known is None else known + trace

    @property
    def _news(self) -> float:
        """How much a turn's values count beside those before it."""
        return 1 - QUICK if self.turns else 1.0

    def damping(self, typical: float) -> float:
        """Take note of a turn's eigenvalues, before `add`: what damps its Newton step.

        The mean over the first `LEARN` turns, or what is smoothed over the last ones, if larger.
        """
        self.bend += self._news * (typical - self.bend)
        early = (self.traces or 0.0) + (typical if self.turns < LEARN else 0.0)
        return max(self.bend, early / min(self.turns + 1, LEARN))

    def rate(self, count: int, largest: float, worth: float, stiff: float) -> float:
        """The largest rate that the bounds allow for `count` directions.

        Args:
            count: of a step.
            largest, worth, stiff: the bounds' constants; 0: this bound is none.
        """
        learned = min(self.turns, LEARN)
        if self.bend:
            return NEWTON * count / max(self.bend, (self.traces or 0.0) / learned)
        square = max(self.squares / learned, self.lately)
        trace = (self.traces or 0.0) / learned
        bounds = []
        if self.size and square:
            bounds.append(largest * self.size * math.sqrt(count / square))
        if self.size:
            bounds.append(worth * self.size**2 * count)
        if trace > 0:
            bounds.append(min(1.0, stiff * count) / trace)  # it may all be in one direction
        return min((bound for bound in bounds if bound), default=START)

"""Whether training has left its best loss behind, told from the losses alone, and the way back.

Where it has, the steps since then are taken back by the negative of their terms, which are terms
like others; of a slow drift only the last ones are (see `fedspzo.auto_lr.auto_rate`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .block_statistics import LEARN

Terms = tuple[dict[int, float], ...]
"""For each block, seed to coefficient."""

SMOOTHING = 0.9
"""Of the losses, a step."""
RISE, SLACK, EARLY = 1.1, 0.105, 0.5
"""Diverged: the smoothed loss is above RISE times its best plus SLACK times the first ones; plus
EARLY times them in the first `LEARN` steps and as many after a way back: few batches tell little.
"""
CHANCE, SLOW = 7.0, 0.98
"""Where losses vary by chance the smoothed one has to be above its best by CHANCE of its standard
deviations too: the least of many noisy values is far below their mean. SLOW smooths the losses'
variance. Of a round of all clients, the median of their losses is taken as it is."""
MEMORY = 64
"""Steps that can be taken back."""


@dataclass
class LossMonitor:
    """The course that losses take, a step's or a round's.

    Attributes:
        steps: steps seen.
        varies: whether losses are of other examples from step to step, a batch's or a few clients',
            and so vary by chance.
        added: how many local steps a round adds up.
        first: the mean loss of the first `LEARN` steps.
        since: steps since the first, or since some were taken back.
        lost: steps in a row whose losses were not finite.
        smoothed, best: the smoothed loss, now and at its best.
        latest: the last losses, two at most.
        variance: the smoothed variance of losses about their course, which is a sixth of the mean
            square of l_t - 2 l_(t-1) + l_(t-2).
        bends: how many of these there were.
        strays: the standard deviation of the smoothed loss, as it was at the best one.
        recent: the terms of the steps since the best, oldest first, the last `MEMORY` at most.
    """

    steps: int = 0
    varies: bool = True
    added: int = 1
    first: float = 0.0
    since: int = 0
    lost: int = 0
    smoothed: float = 0.0
    best: float = 0.0
    latest: list[float] = field(default_factory=list)
    variance: float = 0.0
    bends: int = 0
    strays: float = 0.0
    recent: list[Terms] = field(default_factory=list)

    def diverged(self, loss: float) -> bool:
        """Take note of a step's loss, or a round's; whether the best one was left behind."""
        self.steps += 1
        before, self.since = self.since, self.since + self.added
        if self.steps <= LEARN:  # one batch's loss alone may be far off
            self.first += (loss - self.first) / self.steps
        if len(self.latest) == 2:
            before_last, last = self.latest
            bend = loss - 2 * last + before_last
            square = bend * bend  # ** would raise where it is too large
            self.bends += 1
            self.variance += max(1 - SLOW, 1 / self.bends) * (square / 6 - self.variance)
        self.latest = [*self.latest[-1:], loss]
        news = max(1 - SMOOTHING**self.added, self.added / self.since)
        self.smoothed += news * (loss - self.smoothed)
        slack = (SLACK if self.since > LEARN else EARLY) * abs(self.first)
        if not before or before < LEARN <= self.since or self.smoothed <= self.best:
            self.best = self.smoothed
            self.strays = math.sqrt(self.variance * news / (2 - news))
            self.recent.clear()
        del self.recent[:-MEMORY]  # a slow drift goes on for longer, and is told all the same
        slack += (RISE - 1) * abs(self.best)
        if self.varies:
            slack = max(slack, CHANCE * self.strays)
        return self.smoothed > self.best + slack

    def begin_anew(self) -> None:
        """Compare losses with those to come: the best of many noisy ones flatters its weights."""
        self.recent.clear()
        self.since, self.smoothed = 0, 0.0

    def take_back(self) -> Terms:
        """The terms that undo the steps since the best loss, the last `MEMORY` at most."""
        undone: Terms = tuple({} for _ in self.recent[0])
        for step in self.recent:
            for total, terms in zip(undone, step, strict=True):
                for seed, coefficient in terms.items():
                    total[seed] = -coefficient
        self.begin_anew()
        return undone

"""The loss monitor: it tells from the losses alone that training has left its best loss behind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from .block_statistics import LEARNING_TURNS

Verdict = Literal["best", "near", "diverged"]

SMOOTHING = 0.9
"""Decay of the moving average of the loss, per step."""
RISE = 1.1
"""Largest ratio of the moving average to its best value."""
SLACK = 0.105
"""Further rise that is allowed, as a share of the mean of the first losses."""
EARLY_SLACK = 0.5
"""`SLACK` in the first `LEARNING_TURNS` steps and in as many after a restart. It is larger, as few
batches tell little."""
DEVIATIONS = 7.0
"""Rise that is allowed at least where losses vary by chance, in standard deviations of the moving
average. The least of many noisy values is far below their mean."""
VARIANCE_SMOOTHING = 0.98
"""Decay of the moving average of the losses' variance, per step."""


@dataclass
class LossMonitor:
    """Watches the losses of steps, or of rounds.

    Attributes:
        steps: number of losses observed.
        varies: the losses vary by chance, as each is of other examples: of a batch, or of a few
            clients. False: each is the median over all clients.
        local_steps: number of local steps for each loss.
        first_mean: mean of the first `LEARNING_TURNS` losses.
        since_restart: number of steps since the start or the last restart; a round counts as its
            local steps.
        smoothed: moving average of the loss.
        best: lowest value of the moving average.
        latest: the last losses, two at most.
        variance: moving average of the losses' variance about their trend. It is a sixth of the
            mean square of the second difference l_t - 2 l_(t-1) + l_(t-2).
        second_differences: number of second differences so far.
        best_deviation: standard deviation of the moving average at its lowest value.
    """

    steps: int = 0
    varies: bool = True
    local_steps: int = 1
    first_mean: float = 0.0
    since_restart: int = 0
    smoothed: float = 0.0
    best: float = 0.0
    latest: list[float] = field(default_factory=list)
    variance: float = 0.0
    second_differences: int = 0
    best_deviation: float = 0.0

    def observe(self, loss: float) -> Verdict:
        """Add a loss to the moving average, and compare that with its best value.

        Returns:
            "best": the moving average is at its lowest value, or has none yet to be compared with.
            "diverged": it is above its lowest value by more than is allowed. "near": else.
        """
        self.steps += 1
        before, self.since_restart = self.since_restart, self.since_restart + self.local_steps
        if self.steps <= LEARNING_TURNS:  # one batch's loss alone may be far off
            self.first_mean += (loss - self.first_mean) / self.steps
        self._update_variance(loss)
        news = max(1 - SMOOTHING**self.local_steps, self.local_steps / self.since_restart)
        self.smoothed += news * (loss - self.smoothed)
        settled = before < LEARNING_TURNS <= self.since_restart
        if not before or settled or self.smoothed <= self.best:
            self.best = self.smoothed
            self.best_deviation = math.sqrt(self.variance * news / (2 - news))
            return "best"
        early = self.since_restart <= LEARNING_TURNS
        allowed = (EARLY_SLACK if early else SLACK) * abs(self.first_mean)
        allowed += (RISE - 1) * abs(self.best)
        if self.varies:
            allowed = max(allowed, DEVIATIONS * self.best_deviation)
        return "diverged" if self.smoothed > self.best + allowed else "near"

    def restart(self) -> None:
        """Forget the best value: the lowest of many noisy losses flatters its weights."""
        self.since_restart, self.smoothed = 0, 0.0

    def _update_variance(self, loss: float) -> None:
        if len(self.latest) == 2:
            before_last, last = self.latest
            difference = loss - 2 * last + before_last
            square = difference * difference  # ** would raise where it is too large
            self.second_differences += 1
            news = max(1 - VARIANCE_SMOOTHING, 1 / self.second_differences)
            self.variance += news * (square / 6 - self.variance)
        self.latest = [*self.latest[-1:], loss]

"""The loss monitor: it tells from the losses alone that training has left its best loss behind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from .constants import DEVIATIONS, EARLY_SLACK, LEARNING_TURNS, MEMORY, SLACK

Verdict = Literal["best", "near", "diverged"]


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
        smoothed: moving average of the loss, over some `LEARNING_TURNS` steps.
        best: lowest value of the moving average.
        latest: the last losses, two at most.
        variance: moving average, over some `MEMORY` losses, of their variance about their trend.
            It is a sixth of the mean square of the second difference l_t - 2 l_(t-1) + l_(t-2).
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
        decay = (1 - 1 / LEARNING_TURNS) ** self.local_steps
        news = max(1 - decay, self.local_steps / self.since_restart)
        self.smoothed += news * (loss - self.smoothed)
        settled = before < LEARNING_TURNS <= self.since_restart
        if not before or settled or self.smoothed <= self.best:
            self.best = self.smoothed
            self.best_deviation = math.sqrt(self.variance * news / (2 - news))
            return "best"
        early = self.since_restart <= LEARNING_TURNS
        slack = EARLY_SLACK if early else SLACK
        allowed = slack * (abs(self.best) + abs(self.first_mean))
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
            self.variance += (square / 6 - self.variance) / min(self.second_differences, MEMORY)
        self.latest = [*self.latest[-1:], loss]

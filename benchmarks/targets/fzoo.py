"""FZOO's rule (arXiv 2506.09034), to race against: a step size from the spread of the losses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fedspzo.estimators.base import register
from fedspzo.estimators.mezo import Mezo
from fedspzo.estimators.points import Losses


@register
@dataclass(frozen=True, kw_only=True)
class Fzoo(Mezo):
    """One-sided differences over the standard deviation of the losses at the directions' ends.

    A step is then -lr (l_p - l_0) / (P sigma), summed over directions z_p, whatever the loss's
    scale. As published but for the directions, which are Gaussian here and +-1 there.
    """

    name = "fzoo"

    def gradients(self, losses: Losses, eps: Sequence[float]) -> tuple[list[float], ...]:
        """Return each direction's difference over the losses' standard deviation, not over eps."""
        start = losses[self._at(None)]
        ends = [losses[self._at(p)] for p in range(self.perturbations[0])]
        spread = statistics.stdev(ends)
        return ([(end - start) / spread if spread else 0.0 for end in ends],) * len(eps)

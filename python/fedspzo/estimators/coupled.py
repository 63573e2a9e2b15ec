"""The coupled estimator: both blocks are moved at once. Our reading of FedSPZO's abstract.

arXiv 2502.10239; only the abstract was at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .base import register
from .points import Losses, Point, along, mean
from .two_blocks import Differences, TwoBlocks


@register
@dataclass(frozen=True, kw_only=True)
class Coupled(TwoBlocks):
    """g2 = (l(+eps z1, +eps z2) - l(-eps z1, -eps z2)) / 2 eps; g1 is the mean of these over p."""

    name = "coupled"
    one_sided = False

    def points_of(self, a: int, ps: range) -> Iterator[Point]:
        """Yield the directions on the one side, then backwards on the other.

        So block 2 moves by one term, -2 eps, where block 1 turns.
        """
        for sign in (+1, -1):
            for p in ps[::sign]:
                yield along(a, sign), along(p, sign)

    def differences(self, losses: Losses, a: int, ps: range) -> Differences:
        """Return the mean of the differences for block 1, and each of them for block 2."""
        difference = [
            (losses[along(a, +1), along(p, +1)] - losses[along(a, -1), along(p, -1)]) / 2
            for p in ps
        ]
        return mean(difference), difference

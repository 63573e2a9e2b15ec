"""The coupled estimator: both blocks are moved at once.

This is our reading of the abstract of FedSPZO (arXiv 2502.10239); only the abstract was at hand.
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
    """Takes one central difference for each direction of block 2, and their mean for block 1.

    g2 = (l(+eps z1, +eps z2) - l(-eps z1, -eps z2)) / 2 eps, and g1 is the mean of g2 over the
    directions z2 that share z1.
    """

    name = "coupled"
    one_sided = False

    def points_of(self, a: int, ps: range) -> Iterator[Point]:
        """Yield the directions on one side, then in reverse order on the other.

        So block 2 moves along a single direction, by -2 eps, when block 1 changes sides.
        """
        for sign in (+1, -1):
            for p in ps[::sign]:
                yield along(a, sign), along(p, sign)

    def differences(self, losses: Losses, a: int, ps: range) -> Differences:
        """Return the mean of the differences for block 1, and every difference for block 2."""
        difference = [
            (losses[along(a, +1), along(p, +1)] - losses[along(a, -1), along(p, -1)]) / 2
            for p in ps
        ]
        return mean(difference), difference

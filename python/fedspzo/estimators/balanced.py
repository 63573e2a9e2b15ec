"""The balanced estimator: block 2 is evaluated on both sides of block 1's perturbation.

Neither block's estimate contains the other's noise, and the activations at either side serve both
blocks. The estimator is ours; the abstract of FedSPZO (arXiv 2502.10239) does not describe it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .base import register
from .points import HERE, Losses, Point, along, mean
from .two_blocks import Differences, TwoBlocks


@register
@dataclass(frozen=True, kw_only=True)
class Balanced(TwoBlocks):
    """Evaluates block 2's directions at block 1's +eps z1 and -eps z1 in turn.

    l(s, t) is the loss with block 1 moved by s eps z1 and block 2 by t. The side s alternates from
    one direction of block 2 to the next.

    One-sided: g1 = (l(+, 0) - l(-, 0)) / 2 eps, and g2 = (l(s, eps z2) - l(s, 0)) / eps.
    Two-sided: g2 = (l(s, eps z2) - l(s, -eps z2)) / 2 eps, and g1 is the difference of the two
    sides' mean losses over 2 eps.
    """

    name = "balanced"

    @property
    def fewest(self) -> int:
        """One direction of block 2 for each side of block 1, if two-sided; else one."""
        return 2 if self.sides == "two" else 1

    def points_of(self, a: int, ps: range) -> Iterator[Point]:
        """Yield one side of block 1 after the other, with its directions of block 2."""
        for side in (+1, -1):
            if self.sides == "one":
                yield along(a, side), HERE
            for p in ps:
                if _side(p) == side:
                    yield along(a, side), along(p, +1)
                    if self.sides == "two":
                        yield along(a, side), along(p, -1)

    def differences(self, losses: Losses, a: int, ps: range) -> Differences:
        """Return block 1's difference between the sides, and block 2's at either side."""
        plus = {p: losses[along(a, _side(p)), along(p, +1)] for p in ps}
        if self.sides == "one":
            base = {side: losses[along(a, side), HERE] for side in (+1, -1)}
            return (base[+1] - base[-1]) / 2, [plus[p] - base[_side(p)] for p in ps]
        minus = {p: losses[along(a, _side(p)), along(p, -1)] for p in ps}
        means = {
            side: mean([(plus[p] + minus[p]) / 2 for p in ps if _side(p) == side])
            for side in (+1, -1)
        }
        return (means[+1] - means[-1]) / 2, [(plus[p] - minus[p]) / 2 for p in ps]


def _side(p: int) -> int:
    """Return the sign of block 1's perturbation while block 2's direction p is evaluated."""
    return -1 if p % 2 else +1

"""The anchored estimator, the default: one block at a time is moved, from the weights as they are.

No block's estimate contains another's noise, and a block's evaluations replay all that comes before
it. The estimator is ours; the abstract of FedSPZO (arXiv 2502.10239) does not describe it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .base import Estimator, check_count, register
from .float32 import to_float32
from .points import HERE, Losses, Offset, Point, along, combination, mean

WIDER = 8
"""Ratio of a Newton block's eps to the one that is set. Its second differences are divided by the
square of eps, so that with a small eps the rounding of float32 losses would swamp them."""


@register
@dataclass(frozen=True, kw_only=True)
class Anchored(Estimator):
    """Moves block b alone along P_b directions, for any number of blocks.

    One-sided: g = (l(eps z) - l(0)) / eps. Two-sided: g = (l(eps z) - l(-eps z)) / 2 eps. A block
    with P_b = 0 is left as it is.

    Attributes:
        mirrored: indices, from 0, of blocks that are evaluated on both sides, whatever `sides`
            says. This shows their curvature. Default: none.
        newton: index, from 0, of the block that takes a Newton step (`auto_lr.newton`): products
            of its Hessian along its directions are evaluated too. It is the last block's index, or
            None (default).
    """

    name = "anchored"

    mirrored: tuple[int, ...] = ()
    newton: int | None = None

    def check_perturbations(self) -> None:
        """Raise ValueError unless every number is at least 0, and one above 0."""
        for count in self.perturbations:
            check_count(count, fewest=0)
        if not any(self.perturbations):
            raise ValueError(
                f"perturbations are {self.perturbations}; give at least one block some"
            )

    @property
    def directions(self) -> tuple[int, ...]:
        """The numbers of perturbations, as each has a direction of its own."""
        return self.perturbations

    @classmethod
    def default_perturbations(
        cls, shares: Sequence[float], first: int, most: int
    ) -> tuple[int, ...]:
        """Choose P_1 = `first` and P_b = P_1 / sqrt(C_b), rounded, at most `most`.

        Directions in proportion to 1 / sqrt(cost) leave the least noise that the same computation
        can, if one direction's noise is alike in all blocks (Neyman allocation: Neyman, 1934).
        """
        later = (min(most, round(first * share**-0.5)) for share in shares)
        return (first, *later)

    def scales(self, eps: Sequence[float]) -> tuple[float, ...]:
        """Return the scales that are set; the Newton block's is `WIDER` times as large."""
        return to_float32([WIDER * e if b == self.newton else e for b, e in enumerate(eps)])

    def points(self) -> list[Point]:
        """Return theta, then the ends of each block's directions, the last block's first.

        In this order the later blocks' evaluations replay what the evaluation at theta captured.
        If the last of several blocks takes a Newton step, block 1's ends come before theta. So what
        was captured is still there for that step's further evaluations.
        """
        first, *later = (
            [self._alone(b, at) for at in self._offsets(b)] for b in range(len(self.perturbations))
        )
        moves = [point for points in reversed(later) for point in points]
        if self.newton:
            return [*first, self._alone(), *moves]
        return [self._alone(), *moves, *first]

    def gradients(self, losses: Losses, eps: Sequence[float]) -> tuple[list[float], ...]:
        """Return each block's differences over its eps."""
        return tuple(self.gradient(losses, eps, block) for block in range(len(eps)))

    def gradient(self, losses: Losses, eps: Sequence[float], block: int) -> list[float]:
        """Return the projected gradients of one block. `losses` needs only theta and its points."""
        count = self.perturbations[block]
        return [self._difference(losses, block, p) / eps[block] for p in range(count)]

    def curvatures(self, losses: Losses, eps: Sequence[float]) -> tuple[float | None, ...]:
        """Estimate the trace of each block's Hessian; None for a block that is one-sided."""
        return tuple(self.curvature(losses, eps, block) for block in range(len(eps)))

    def curvature(self, losses: Losses, eps: Sequence[float], block: int) -> float | None:
        """Estimate the trace of one block's Hessian; None if the block is one-sided.

        The estimate is the mean over the block's directions of
        (l(eps z) + l(-eps z) - 2 l(0)) / eps^2 (Hutchinson, 1989, by second differences).
        """
        here = losses[self._alone()]
        differences = [
            losses[self._alone(block, along(p, +1))]
            + losses[self._alone(block, along(p, -1))]
            - 2 * here
            for p in range(self.perturbations[block])
            if self._two_sided(block)
        ]
        return mean(differences) / eps[block] ** 2 if differences else None

    def hessian_points(self, pivot: Sequence[float]) -> list[Point]:
        """Return the points that `hessian_product` needs beside `points()`, in their order.

        Args:
            pivot: the vector, (P,), that the Hessian is multiplied with.
        """
        block = self._newton_block()
        each = (combination(pivot, also=q) for q in range(self.perturbations[block]))
        return [self._alone(block, at) for at in (combination(pivot), *each)]

    def hessian_product(
        self, losses: Losses, eps: Sequence[float], beside: Sequence[Point]
    ) -> list[float]:
        """Multiply the Newton block's Hessian along its P directions with a vector v, (P,).

        Entry q of the result is (l(u + eps z_q) - l(u) - l(eps z_q) + l(0)) / eps^2, with
        u = sum_p v_p eps z_p.

        Args:
            losses: the loss at each of `points()` and of `beside`.
            eps: each block's perturbation scale, as `scales` returned it.
            beside: `hessian_points(v)`, for a vector v of norm 1.
        """
        block = self._newton_block()
        moved, *both = (losses[point] for point in beside)
        here = losses[self._alone()]
        return [
            (value - moved - losses[self._alone(block, along(q))] + here) / eps[block] ** 2
            for q, value in enumerate(both)
        ]

    def _newton_block(self) -> int:
        if self.newton is None:
            raise ValueError("newton is None; build the estimator with the block's number")
        return self.newton

    def _two_sided(self, block: int) -> bool:
        return self.sides == "two" or block in self.mirrored or block == self.newton

    def _offsets(self, block: int) -> Iterator[Offset]:
        """Yield a block's offsets in the order that moves it least."""
        for p in range(self.perturbations[block]):
            yield along(p, +1)
            if self._two_sided(block):
                yield along(p, -1)

    def _alone(self, block: int = 0, offset: Offset = HERE) -> Point:
        """Return the point where one block is moved and the others are as they are."""
        offsets = [HERE] * len(self.perturbations)
        offsets[block] = offset
        return tuple(offsets)

    def _difference(self, losses: Losses, block: int, p: int) -> float:
        plus = losses[self._alone(block, along(p, +1))]
        if self._two_sided(block):
            return (plus - losses[self._alone(block, along(p, -1))]) / 2
        return plus - losses[self._alone()]

"""The base class of the estimators for two blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .base import Estimator, check_count
from .points import Losses, Point

Differences = tuple[float, list[float]]
"""The difference of one direction of block 1, and those of its directions of block 2."""


@dataclass(frozen=True, kw_only=True)
class TwoBlocks(Estimator):
    """Takes P1 directions of block 1, and for each of them P2 directions of block 2.

    `perturbations` is (P1, P2).
    """

    def check_perturbations(self) -> None:
        """Raise ValueError unless there are two numbers, each large enough."""
        for count in self.perturbations:
            check_count(count)
        if len(self.perturbations) != 2:
            raise ValueError(
                f"perturbations are {self.perturbations}: estimator {self.name!r} needs two blocks,"
                f" but there are {len(self.perturbations)}; pass split(model, at=LAYER) and"
                " [P1, P2], or another estimator"
            )
        if self.perturbations[1] < self.fewest:
            raise ValueError(
                f"perturbations of block 2 is {self.perturbations[1]}, but {self.name!r}"
                f" {self.sides}-sided needs at least {self.fewest}; raise P2"
            )

    @property
    def fewest(self) -> int:
        """The smallest number P2 for which the estimator is defined."""
        return 1

    @property
    def directions(self) -> tuple[int, ...]:
        """The numbers P1 and P1 P2."""
        p1, p2 = self.perturbations
        return p1, p1 * p2

    @classmethod
    def default_perturbations(
        cls, shares: Sequence[float], first: int, most: int
    ) -> tuple[int, ...]:
        """Choose P1 = 1 and P2 = C1 / C2, rounded to an even number, at least 2."""
        return (1, *(max(2, 2 * round((1 - share) / share / 2)) for share in shares))

    def points(self) -> list[Point]:
        """Return the points of every direction of block 1."""
        return [point for a, ps in self._repeats() for point in self.points_of(a, ps)]

    def gradients(self, losses: Losses, eps: Sequence[float]) -> tuple[list[float], ...]:
        """Return both blocks' differences over their eps."""
        first: list[float] = []
        second: list[float] = []
        for a, ps in self._repeats():
            d1, d2 = self.differences(losses, a, ps)
            first.append(d1 / eps[0])
            second.extend(d / eps[1] for d in d2)
        return first, second

    @abstractmethod
    def points_of(self, a: int, ps: range) -> Iterator[Point]:
        """Yield the points of block 1's direction `a` and its directions `ps` of block 2.

        The points come in the order that moves the weights least.
        """

    @abstractmethod
    def differences(self, losses: Losses, a: int, ps: range) -> Differences:
        """Return the differences of losses of these directions, before division by eps."""

    def _repeats(self) -> list[tuple[int, range]]:
        p1, p2 = self.perturbations
        return [(a, range(a * p2, (a + 1) * p2)) for a in range(p1)]

"""MeZO's estimator (Malladi et al., arXiv 2305.17333): all blocks move along one direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedspzo.choices import Sides
from fedspzo.seeds import step_seeds

from .base import Estimator, check_count, register
from .points import HERE, Losses, Point, along


@register
@dataclass(frozen=True, kw_only=True)
class Mezo(Estimator):
    """Moves the whole model along P directions, one after another.

    Two-sided: g_p = (l(eps z_p) - l(-eps z_p)) / 2 eps. One-sided: g_p = (l(eps z_p) - l(0)) / eps.
    `perturbations` holds P for every block.
    """

    name = "mezo"
    joint = True

    def check_perturbations(self) -> None:
        """Raise ValueError unless all blocks have the same number, at least 1."""
        for count in self.perturbations:
            check_count(count)
        if len(set(self.perturbations)) != 1:
            raise ValueError(
                f"perturbations are {self.perturbations}, but 'mezo' moves all blocks along the"
                " same directions; pass one int"
            )

    @property
    def directions(self) -> tuple[int, ...]:
        """The number P for every block: all have the same directions."""
        return self.perturbations

    @classmethod
    def default_perturbations(
        cls, shares: Sequence[float], first: int, most: int
    ) -> tuple[int, ...]:
        """Choose one direction, as published."""
        return (1,) * (1 + len(shares))

    @classmethod
    def default_sides(cls, low_precision: bool) -> Sides:
        """Choose central differences, as published."""
        return "two"

    def seeds(self, seed: int, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the same directions' seeds for every block."""
        return step_seeds(seed, step, self.directions[:1]) * len(self.perturbations)

    def points(self) -> list[Point]:
        """Return theta and one end of every direction, if one-sided; else both ends of each."""
        start = [self._at(None)] if self.sides == "one" else []
        signs = (+1,) if self.sides == "one" else (+1, -1)
        return start + [self._at(p, sign) for p in range(self.perturbations[0]) for sign in signs]

    def gradients(self, losses: Losses, eps: Sequence[float]) -> tuple[list[float], ...]:
        """Return each direction's difference over each block's eps."""
        count = range(self.perturbations[0])
        if self.sides == "two":
            both = [(losses[self._at(p)], losses[self._at(p, -1)]) for p in count]
            differences = [(plus - minus) / 2 for plus, minus in both]
        else:
            start = losses[self._at(None)]
            differences = [losses[self._at(p)] - start for p in count]
        return tuple([difference / e for difference in differences] for e in eps)

    def _at(self, direction: int | None, sign: int = +1) -> Point:
        offset = HERE if direction is None else along(direction, sign)
        return (offset,) * len(self.perturbations)

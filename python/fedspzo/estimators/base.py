"""What an estimator is, and the registry of those that settings can name.

An estimator turns losses at some points theta + s eps z into one *projected gradient* g for each
direction z. Block b's step is the mean of g z over its directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

from fedspzo.choices import Sides
from fedspzo.seeds import step_seeds

from .float32 import to_float32
from .points import HERE, Losses, Point, mean


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """An estimator with its numbers of perturbations. A subclass is an estimator of its own.

    Attributes:
        sides: "one" (forward differences) or "two" (central differences).
        perturbations: one number for each block; what it counts is the subclass's to say.

    Class attributes:
        name: what settings call it.
        joint: whether all blocks move along the same directions; `perturbations` is then one int
            in settings, and nothing is replayed.
        one_sided: whether it has a one-sided form.

    Raises:
        ValueError: a value is out of range; the message names it and the remedy.
    """

    name: ClassVar[str]
    joint: ClassVar[bool] = False
    one_sided: ClassVar[bool] = True

    sides: Sides
    perturbations: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.sides not in get_args(Sides):
            raise ValueError(f"sides is {self.sides!r}; pass 'one' or 'two'")
        if self.sides == "one" and not self.one_sided:
            raise ValueError(
                f"sides is 'one', but {self.name!r} is two-sided; leave sides out or pass 'two'"
            )
        self.check_perturbations()

    @abstractmethod
    def check_perturbations(self) -> None:
        """Raise ValueError unless the numbers of perturbations fit the estimator."""

    @property
    @abstractmethod
    def directions(self) -> tuple[int, ...]:
        """How many directions each block has in a step."""

    @abstractmethod
    def points(self) -> list[Point]:
        """Return the points of one step, in the order in which to evaluate them."""

    @abstractmethod
    def gradients(self, losses: Losses, eps: Sequence[float]) -> tuple[list[float], ...]:
        """Return the projected gradients, block by block and direction by direction.

        Args:
            losses: the loss at each of `points()`.
            eps: each block's perturbation scale, as `scales` returned it.
        """

    @classmethod
    @abstractmethod
    def default_perturbations(
        cls, shares: Sequence[float], first: int, most: int
    ) -> tuple[int, ...]:
        """Choose the numbers of perturbations from what the blocks' evaluations cost.

        Args:
            shares: C_b for the blocks from the second on: what an evaluation costs that replays
                the blocks before it, as a share of a full forward pass, in (0, 1].
            first: directions of block 1, where the estimator leaves that open.
            most: directions of a later block at most, likewise.
        """

    @classmethod
    def default_sides(cls, low_precision: bool) -> Sides:
        """Choose the sides: central differences where low precision rounds losses away."""
        return "one" if cls.one_sided and not low_precision else "two"

    def scales(self, eps: Sequence[float]) -> tuple[float, ...]:
        """Return each block's perturbation scale, a float32 value, from what is set for it."""
        return to_float32(eps)

    def seeds(self, seed: int, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the directions' seeds in step `step` of the optimizer's `seed`, block by block."""
        return step_seeds(seed, step, self.directions)

    def loss(self, losses: Losses) -> float:
        """Return the step's loss: at theta, else the mean where the last block is not moved.

        Where it is moved at every point, the mean of all.
        """
        at_theta = losses.get((HERE,) * len(self.perturbations))
        if at_theta is not None:
            return at_theta
        unmoved = [value for point, value in losses.items() if point[-1] == HERE]
        return mean(unmoved or list(losses.values()))

    def curvatures(self, losses: Losses, eps: Sequence[float]) -> tuple[float | None, ...]:
        """Estimate the trace of each block's Hessian; None where the losses do not tell."""
        return (None,) * len(self.perturbations)


E = TypeVar("E", bound=type[Estimator])

ESTIMATORS: dict[str, type[Estimator]] = {}
"""The estimators by name."""


def register(estimator: E) -> E:
    """Make an estimator known under its `name`; a class decorator.

    Raises:
        ValueError: the name is taken, or a message could not hold it.
    """
    if not (estimator.name.isascii() and 0 < len(estimator.name) < 256):
        raise ValueError(f"name is {estimator.name!r}; give 1 to 255 ASCII characters")
    if estimator.name in ESTIMATORS:
        raise ValueError(f"estimator {estimator.name!r} is registered already; give another name")
    ESTIMATORS[estimator.name] = estimator
    return estimator


def find(name: object) -> type[Estimator]:
    """Return the estimator of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in ESTIMATORS:
        raise ValueError(f"estimator is {name!r}; give one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def check_count(count: Any, fewest: int = 1) -> None:
    """Raise ValueError unless `count` is an int of at least `fewest`."""
    if isinstance(count, bool) or not isinstance(count, int) or count < fewest:
        raise ValueError(f"perturbations is {count!r}; pass an int of at least {fewest}")

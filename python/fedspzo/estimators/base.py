"""The estimators' base class, and the registry of those that settings can name.

An estimator turns losses at some points theta + s eps z into one *projected gradient* g for each
direction z. Block b's gradient is estimated by the mean of g z over its directions (SPSA: Spall,
1992).
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
    """Estimates projected gradients from losses. Each subclass is an estimator of its own.

    Attributes:
        sides: "one" (forward differences) or "two" (central differences).
        perturbations: one number for each block; the subclass says what it counts.

    Class attributes:
        name: its name in settings.
        joint: all blocks move along the same directions. `perturbations` is then one int in
            settings, and nothing is replayed. Default False.
        one_sided: it has a one-sided form. Default True. One without a two-sided form refuses
            that in `check_perturbations`, and its `default_sides` is always "one".

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
        """The number of directions that each block has in a step."""

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
        """Choose the numbers of perturbations from the costs of the blocks' evaluations.

        A joint estimator has one number for all blocks, and is asked with no shares.

        Args:
            shares: for each block but the first, the cost C_b of an evaluation that replays the
                blocks before it, in full forward passes, in (0, 1].
            first: number of directions of block 1, if the estimator leaves it open.
            most: largest number of directions of a later block, if the estimator leaves it open.
        """

    @classmethod
    def default_sides(cls, low_precision: bool) -> Sides:
        """Choose the sides: "two" if low precision would round small differences away."""
        return "one" if cls.one_sided and not low_precision else "two"

    def scales(self, eps: Sequence[float]) -> tuple[float, ...]:
        """Return each block's perturbation scale, a float32 value, from the one that is set."""
        return to_float32(eps)

    def seeds(self, seed: int, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the directions' 64-bit seeds, block by block.

        Args:
            seed: the optimizer's seed.
            step: the step's number, from 0.
        """
        return step_seeds(seed, step, self.directions)

    def loss(self, losses: Losses) -> float:
        """Return the step's loss: the one at theta, if the estimator evaluates it.

        Else it is the mean over the points where the last block is not moved, or over all points
        if it is moved at each of them.
        """
        at_theta = losses.get((HERE,) * len(self.perturbations))
        if at_theta is not None:
            return at_theta
        unmoved = [value for point, value in losses.items() if point[-1] == HERE]
        return mean(unmoved or list(losses.values()))

    def curvatures(self, losses: Losses, eps: Sequence[float]) -> tuple[float | None, ...]:
        """Estimate the trace of each block's Hessian; None if the losses do not show it."""
        return (None,) * len(self.perturbations)


E = TypeVar("E", bound=type[Estimator])

ESTIMATORS: dict[str, type[Estimator]] = {}
"""The estimators by name."""


def register(estimator: E) -> E:
    """Register an estimator under its `name`. This is a class decorator.

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
    """Return the estimator that is registered under a name.

    Raises:
        ValueError: there is no such estimator.
    """
    if not isinstance(name, str) or name not in ESTIMATORS:
        raise ValueError(f"estimator is {name!r}; give one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def check_count(count: Any, fewest: int = 1) -> None:
    """Raise ValueError unless `count` is an int of at least `fewest`."""
    if isinstance(count, bool) or not isinstance(count, int) or count < fewest:
        raise ValueError(f"perturbations is {count!r}; pass an int of at least {fewest}")

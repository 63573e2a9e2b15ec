"""The estimators: at which points the loss is evaluated, and what the losses say.

Every estimator turns the losses at some points theta + s eps z, s in {+1, 0, -1}, into one
*projected gradient* g a direction; block b's step is the mean of g z over its directions.

`anchored`, the default and ours, is for any number of blocks: all differences are taken at theta,
and of one block at a time, so that no block's estimate contains another's noise, and a block's
evaluations replay all that comes before it. The others but `mezo` are for two blocks and take, for
each of P1 directions z1 of block 1, P2 directions z2 of block 2. `balanced` evaluates block 2 on
both sides of block 1's perturbation; `coupled` is our reading of FedSPZO's abstract (arXiv
2502.10239); `mezo` is MeZO (arXiv 2305.17333), where all blocks move along one direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fedspzo.seeds import step_seeds

from .defaults import directions
from .points import HERE, Losses, Offset, Point, along, blend, mean
from .two_blocks import TWO_BLOCKS

WIDER = 8
"""A solved block's eps over the given one: second differences are divided by its square, and of
float32 losses little would be left."""


NAMES = ("anchored", "balanced", "coupled", "coupled-loo", "mezo")


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """An estimator with its numbers of perturbations.

    Attributes:
        name: "anchored", "balanced", "coupled", "coupled-loo" or "mezo".
        sides: "one" or "two"; the coupled estimators are two-sided.
        perturbations: one number a block. "anchored": how many directions the block has; 0 leaves
            it as it is. "mezo": all alike, as every block moves along one direction of the whole.
            The others: P2 directions of block 2 for each of P1 of block 1.
        mirrored: "anchored": all blocks but the first are evaluated on both sides whatever `sides`
            says, which shows their curvature.
        solved: "anchored": the block, from 0, whose Hessian's products along its directions are
            evaluated too (`fedspzo.auto_lr.newton`), the last one; None: no block's are.

    Raises:
        ValueError: a value out of range, naming it and the remedy.
    """

    name: str
    sides: str
    perturbations: tuple[int, ...]
    mirrored: bool = False
    solved: int | None = None

    def __post_init__(self) -> None:
        counts = self.perturbations
        if self.name not in NAMES:
            raise ValueError(f"estimator is {self.name!r}; pass one of {', '.join(NAMES)}")
        if self.sides not in ("one", "two"):
            raise ValueError(f"sides is {self.sides!r}; pass 'one' or 'two'")
        for count in counts:
            check_perturbations(count, fewest=0 if self.name == "anchored" else 1)
        if self.name == "anchored":
            if not any(counts):
                raise ValueError(f"perturbations are {counts}; give at least one block some")
            return
        if self.name == "mezo":
            if len(set(counts)) != 1:
                raise ValueError(
                    f"perturbations are {counts}, but 'mezo' moves all blocks along the same"
                    " directions; pass one int"
                )
            return
        if len(counts) != 2:
            raise ValueError(
                f"estimator {self.name!r} needs two blocks, but there are {len(counts)}; pass"
                " split(model, at=LAYER), or another estimator"
            )
        if (self.name, self.sides) not in TWO_BLOCKS:
            raise ValueError(f"sides is {self.sides!r}, but {self.name!r} is two-sided; pass 'two'")
        fewest = TWO_BLOCKS[self.name, self.sides][2]
        if counts[1] < fewest:
            raise ValueError(
                f"perturbations of block 2 is {counts[1]}, but {self.name!r} {self.sides}-sided"
                f" needs at least {fewest}"
            )

    @property
    def directions(self) -> tuple[int, ...]:
        """How many directions each block has in a step."""
        return directions(self.name, self.perturbations)

    def scales(self, eps: Sequence[float]) -> tuple[float, ...]:
        """Each block's perturbation scale, a float32 value, from what is given for it."""
        given = enumerate(eps)
        return to_float32([WIDER * e if block == self.solved else e for block, e in given])

    def seeds(self, seed: int, step: int) -> tuple[tuple[int, ...], ...]:
        """The directions' seeds, block by block, in step `step` of the optimizer's `seed`."""
        if self.name == "mezo":
            return step_seeds(seed, step, self.directions[:1]) * len(self.perturbations)
        return step_seeds(seed, step, self.directions)

    def points(self) -> list[Point]:
        """The points of one step, in the order in which to evaluate them."""
        if self.name == "anchored":
            # the last block first: what block 1 replays is what theta's own evaluation captured
            moves = [
                self._alone(block, offset)
                for block in reversed(range(len(self.perturbations)))
                for offset in self._offsets(block)
            ]
            return [self._alone(), *moves]
        if self.name == "mezo":
            blocks, count = len(self.perturbations), self.perturbations[0]
            two = self.sides == "two"
            here = [] if two else [(HERE,) * blocks]
            return here + [(along(p, s),) * blocks for p in range(count) for s in _signs(two)]
        points = TWO_BLOCKS[self.name, self.sides][0]
        return [point for a, ps in self._repeats() for point in points(a, ps)]

    def gradients(self, loss: Losses, eps: Sequence[float]) -> tuple[list[float], ...]:
        """The projected gradients, block by block and direction by direction.

        Args:
            loss: the loss at each of `points()`.
            eps: each block's perturbation scale, as `scales` returned it.
        """
        if self.name == "anchored":
            return tuple(self.gradient(loss, eps, block) for block in range(len(eps)))
        if self.name == "mezo":
            blocks, count = len(self.perturbations), self.perturbations[0]
            if self.sides == "two":
                d = [
                    (loss[(along(p, +1),) * blocks] - loss[(along(p, -1),) * blocks]) / 2
                    for p in range(count)
                ]
            else:
                d = [loss[(along(p),) * blocks] - loss[(HERE,) * blocks] for p in range(count)]
            return tuple([x / e for x in d] for e in eps)
        differences = TWO_BLOCKS[self.name, self.sides][1]
        first: list[float] = []
        second: list[float] = []
        for a, ps in self._repeats():
            d1, d2 = differences(loss, a, ps)
            first.append(d1 / eps[0])
            second.extend(d / eps[1] for d in d2)
        return first, second

    def gradient(self, loss: Losses, eps: Sequence[float], block: int) -> list[float]:
        """ "anchored": the projected gradients of one block, whose points are enough for it."""
        count = self.perturbations[block]
        return [self._difference(loss, block, p) / eps[block] for p in range(count)]

    def loss(self, loss: Losses) -> float:
        """The step's loss: at theta; else the mean where the last block is as it is, or of all."""
        at_theta = loss.get((HERE,) * len(self.perturbations))
        if at_theta is not None:
            return at_theta
        here = [value for point, value in loss.items() if point[-1] == HERE]
        return mean(here or list(loss.values()))

    def curvatures(self, loss: Losses, eps: Sequence[float]) -> tuple[float | None, ...]:
        """The trace of each block's Hessian, estimated; None where the loss does not tell.

        The mean over a block's directions of (l(eps z) + l(-eps z) - 2 l(0)) / eps^2.
        """
        if self.name != "anchored":
            return (None,) * len(self.perturbations)
        return tuple(self.curvature(loss, eps, block) for block in range(len(eps)))

    def curvature(self, loss: Losses, eps: Sequence[float], block: int) -> float | None:
        """ "anchored": the trace of one block's Hessian, whose points are enough for it."""
        here = loss[self._alone()]
        bends = [
            loss[self._alone(block, along(p, +1))]
            + loss[self._alone(block, along(p, -1))]
            - 2 * here
            for p in range(self.perturbations[block])
            if self._two_sided(block)
        ]
        return mean(bends) / eps[block] ** 2 if bends else None

    def bending_points(self, pivot: Sequence[float] = ()) -> list[Point]:
        """Where `product` needs the loss, in the order in which to evaluate it; before `points()`.

        Without a pivot: those of `points()` that its gradient takes.
        """
        block = self.solved
        assert block is not None
        if not pivot:
            return [self._alone(), *(self._alone(block, at) for at in self._offsets(block))]
        each = (blend(pivot, also=q) for q in range(self.perturbations[block]))
        return [self._alone(block, at) for at in (blend(pivot), *each)]

    def product(self, loss: Losses, eps: Sequence[float], pivot: Sequence[float]) -> list[float]:
        """The solved block's Hessian along its directions, (P, P), times a pivot v.

        For direction q: (l(eps v + eps z_q) - l(eps v) - l(eps z_q) + l(0)) / eps^2, eps v being
        where eps z_p are added up, each times v_p.
        """
        block = self.solved
        assert block is not None
        moved, *both = (loss[point] for point in self.bending_points(pivot))
        here = loss[self._alone()]
        return [
            (value - moved - loss[self._alone(block, along(q))] + here) / eps[block] ** 2
            for q, value in enumerate(both)
        ]

    def _two_sided(self, block: int) -> bool:
        mirrored = self.mirrored and block > 0
        return self.sides == "two" or mirrored or block == self.solved

    def _offsets(self, block: int) -> Iterator[Offset]:
        """Where a block is moved to, in the order that moves it least."""
        for p in range(self.perturbations[block]):
            for sign in _signs(self._two_sided(block)):
                yield along(p, sign)

    def _alone(self, block: int = 0, offset: Offset = HERE) -> Point:
        """The point where one block is moved and the others are as they are."""
        offsets = [HERE] * len(self.perturbations)
        offsets[block] = offset
        return tuple(offsets)

    def _difference(self, loss: Losses, block: int, p: int) -> float:
        plus = loss[self._alone(block, along(p, +1))]
        if self._two_sided(block):
            return (plus - loss[self._alone(block, along(p, -1))]) / 2
        return plus - loss[self._alone()]

    def _repeats(self) -> list[tuple[int, range]]:
        p1, p2 = self.perturbations
        return [(a, range(a * p2, (a + 1) * p2)) for a in range(p1)]


def check_perturbations(count: object, fewest: int = 1) -> None:
    """Raise ValueError unless `count` is an int of at least `fewest`."""
    if isinstance(count, bool) or not isinstance(count, int) or count < fewest:
        raise ValueError(f"perturbations is {count!r}; pass an int of at least {fewest}")


def coefficients(gradients: Sequence[float], lr: float) -> tuple[float, ...]:
    """What a block's update adds along each direction: `-lr g / P`, rounded to float32.

    Args:
        gradients: the projected gradients of the block's P directions.
        lr: the block's learning rate.
    """
    return to_float32([-lr * g / len(gradients) for g in gradients])


def to_float32(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest float32 values, as Python floats; infinite beyond float32's range."""
    return tuple(torch.tensor(values, dtype=torch.float64).to(torch.float32).tolist())


def _signs(two_sided: bool) -> tuple[int, ...]:
    return (+1, -1) if two_sided else (+1,)

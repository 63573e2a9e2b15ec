"""Learning rates that find themselves, from losses and weights alone, and back off.

`SPZO(lr="auto")`. A block's first turns set its rate, as large as some bounds let it be, or it
takes Newton steps (`fedspzo.auto_lr.block_statistics`). In the long run the rate of a block that
others lead falls, centrally so that all its noise adds up to so much and no more; so do Newton
steps.

The last of several blocks moves alone at first, as a new head that is learned first spares the
features below it (Kumar et al., arXiv 2202.10054), and its steps cost little; the others join it
one by one, from the back (gradual unfreezing: Howard and Ruder, arXiv 1801.06146). Then a block has
its turn in every step, unless its directions would do so little beside the last block's that they
are not worth their computation each time (`AutoRate.turns`).

Every few steps the *trust ratio* is looked at (`fedspzo.auto_lr.trust_ratio`): a step that keeps
too little of its promise is halved until it keeps it, and the rates with it. Where the smoothed
loss has left its best value behind, the steps since then are taken back and the rates are halved
(`fedspzo.auto_lr.loss_monitor`); of a slow drift only the last steps are, and it is the rates that
end it. Everything follows from losses and weights, so it repeats; the terms that take steps back
are terms like others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from fedspzo.estimators.float32 import to_float32

from .block_statistics import (
    FARTHEST,
    LARGEST,
    LARGEST_LAST,
    LARGEST_ONLY,
    LEARN,
    START,
    STIFF,
    WORTH,
    BlockStatistics,
)
from .loss_monitor import LossMonitor
from .newton import Spectrum

LEAD = 16
"""Steps in which not all blocks move yet: each joins the later ones, the first one after these."""
LONGEST = 8
"""The most steps from one turn of a block to its next."""
STEADY, FALL = 20, 0.75
"""Turns from which on the rate of a block that others lead falls, or that takes Newton steps: as
(STEADY / turns)**FALL. The sum of such rates has no bound, that of their squares, as noise adds up,
has one (Robbins and Monro, 1951). In a federation the rate falls with the square root instead."""
EVERY = 8
"""Steps between looks at the trust ratio."""
HALVE = 0.5
"""What a step that breaks its promise is multiplied by, and all rates where training diverges."""
PART = 2**22
"""Elements of which a float32 copy is made at a time."""


@dataclass
class AutoRate(LossMonitor):
    """What `lr="auto"` remembers: the losses' course, and what follows from it for the rates.

    Plain values, which a state_dict holds.

    Attributes:
        cut: whether the param groups are a network's blocks, the last one what comes last in it;
            else they are just groups, each bounded like an only block.
        central: whether such blocks take turns, and the last one Newton steps; else, as in a
            federation, whose rounds are steps, every one moves all of them along their gradients.
        averaged: of how many steps' own directions an update is the mean: a round's clients.
            The update is the sum of `added` such means, and its noise adds up to added / averaged
            times the squared norm of one step's. Where that is less than 1, the bounds on size and
            curvature allow as much more (the latter no more than what is stable, 1 / trace); what
            noise is worth grows with `averaged`, as with P. Where it is more, a round counts for as
            many turns.
        factor: what looks and divergence have made of the rates that the bounds allow.
        blocks: what each block has shown; empty before the first step.
    """

    cut: bool = True
    central: bool = True
    averaged: float = 1.0
    factor: float = 1.0
    blocks: list[BlockStatistics] = field(default_factory=list)

    def copy(self) -> AutoRate:
        """One that goes its own way."""
        return replace(
            self,
            blocks=[replace(seen) for seen in self.blocks],
            recent=[*self.recent],
        )

    def bending(self, counts: Sequence[int]) -> bool:
        """Whether a block but the first that has directions still learns its rate."""
        later = zip(self.blocks[1:], counts[1:], strict=True)
        return not self.blocks or any(count and seen.turns < LEARN for seen, count in later)

    def turns(self, counts: Sequence[int]) -> tuple[int, ...]:
        """The next step's numbers of directions: `counts`, but 0 where it is not a block's turn."""
        if not self.cut or not self.central:
            return tuple(counts)
        last = max(block for block, count in enumerate(counts) if count)
        others = len(counts) - 1  # join the last one, from the back
        due = [
            self.steps * others >= LEAD * (others - block) and seen.rested + 1 >= seen.wait
            for block, seen in enumerate(self.blocks)
        ] or [False] * len(counts)
        return tuple(
            count if due[block] or block == last else 0 for block, count in enumerate(counts)
        )

    def measure(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take note of the weights' sizes, once: before the first step moves them."""
        if not self.blocks:
            self.blocks = [BlockStatistics(root_mean_square(group["params"])) for group in groups]

    def learn(
        self,
        groups: Sequence[dict[str, Any]],
        gradients: Sequence[Sequence[float]],
        curvatures: Sequence[float | None],
        costs: Sequence[float],
        spectrum: Spectrum | None = None,
    ) -> tuple[Sequence[float], ...]:
        """Set the rates, and when it is a block's turn, by what a step has shown.

        Args:
            groups: the param groups, whose `lr` is set.
            gradients: a block, its directions' projected gradients; none where it did not move.
            curvatures: a block, its Hessian's trace as the step's losses show it, or None.
            costs: a block, what a turn of it costs; of the last one, a step of it alone.
            spectrum: of the last block's Hessian along its directions, if known.

        Returns:
            What the update is to follow: the gradients, the last block's damped by its spectrum;
            centrally no longer than one step may be.
        """
        followed = tuple(gradients)
        if not all(math.isfinite(_mean_dot(block, block)) for block in gradients):
            return followed
        self.measure(groups)
        if spectrum is not None:
            curvatures = (*curvatures[:-1], spectrum.typical)
            damping = self.blocks[-1].damping(spectrum.typical)
            if damping:
                damped = to_float32(spectrum.damp(gradients[-1], damping))
                followed = (*followed[:-1], damped)
        squares = [_mean_dot(*both) for both in zip(gradients, followed, strict=True)]
        for block, (group, seen, found) in enumerate(
            zip(groups, self.blocks, gradients, strict=True)
        ):
            seen.rested += 1
            if found:
                seen.add(squares[block], curvatures[block])
                group["lr"] = self.rate(block, len(found))
        self._pace([group["lr"] for group in groups], costs)
        if not self.central:
            return followed
        return tuple(
            self._not_too_far(block, along, group["lr"])
            for block, (group, along) in enumerate(zip(groups, followed, strict=True))
        )

    def _not_too_far(self, block: int, along: Sequence[float], rate: float) -> Sequence[float]:
        """What a block's update follows, less where one step would be longer than any may be.

        The rate is by the mean gradient, and where losses are small that of a batch with an outlier
        is many times as large; to clip is what such noise asks for (Gorbunov et al., arXiv
        2005.10785).
        """
        seen = self.blocks[block]
        share = FARTHEST if seen.bend else self._largest(block)
        size = self.factor * self._fall(block) * share * seen.size
        # the root mean square change of a weight, of random directions
        length = rate * math.sqrt(_mean_dot(along, along) / max(1, len(along)))
        if not length > size > 0:
            return along
        return to_float32([size / length * g for g in along])

    @property
    def _calm(self) -> float:
        """How many times less noise an update has than one step, in squared norm."""
        return self.averaged / self.added

    def _leads(self, block: int) -> bool | None:
        """True: the last of a network's blocks; False: one that it leads; None: there is none."""
        several = self.cut and len(self.blocks) > 1
        return block == len(self.blocks) - 1 if several else None

    def _largest(self, block: int) -> float:
        return {True: LARGEST_LAST, False: LARGEST, None: LARGEST_ONLY}[self._leads(block)]

    def _fall(self, block: int) -> float:
        """What the number of its turns makes of a block's rate."""
        seen = self.blocks[block]
        if self._leads(block) is not False and not seen.bend:
            return 1.0
        more = max(0.0, 1 / self._calm - 1)  # turns that a round counts for
        turns = seen.turns + max(0, seen.turns - LEARN) * more
        left: float = min(1.0, STEADY / max(1, turns))
        return math.pow(left, FALL) if self.central else math.sqrt(left)

    def rate(self, block: int, count: int) -> float:
        """What a block's turns so far make of its rate, for `count` directions a step."""
        seen = self.blocks[block]
        if not seen.turns:
            return self.factor * START
        gain = max(1.0, math.sqrt(self._calm))
        worth = 0.0 if self._leads(block) else WORTH * self.averaged
        bound = seen.rate(count, gain * self._largest(block), worth, gain * STIFF)
        return self.factor * self._fall(block) * bound

    def _pace(self, rates: Sequence[float], costs: Sequence[float]) -> None:
        """Set how long each block waits for its turn.

        A turn promises a fall of the loss by lr g^2. Where rates are about in proportion to the
        inverse of curvatures, its directions' noise is in proportion to that too, and by Neyman's
        allocation (docs/estimators.md) turns should be to the root of promise over cost.
        """
        worths = [
            rate * seen.lately / cost if cost else 0.0  # without directions it has no turns
            for rate, seen, cost in zip(rates, self.blocks, costs, strict=True)
        ]
        for seen, worth in zip(self.blocks, worths, strict=True):
            if worth > 0 and worths[-1] > 0:
                due = math.sqrt(worth / worths[-1])
                seen.wait = LONGEST if due * LONGEST < 1 else max(1, int(1 / due))

    def scale(self, groups: Sequence[dict[str, Any]], factor: float) -> None:
        """Multiply the rates, those still to be learned too."""
        self.factor *= factor
        for group in groups:
            group["lr"] *= factor

    def due(self) -> bool:
        """Whether the step at hand is to be looked at: each block's first is, and then some."""
        waited = any(
            seen.rested == 0 and (seen.turns == 1 or seen.unseen > EVERY) for seen in self.blocks
        )
        if self.steps % EVERY != 1 and not waited:
            return False
        for seen in self.blocks:
            seen.unseen = seen.unseen if seen.rested else 0
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a state_dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AutoRate:
        """What `to_dict` returned; ValueError if it returned another thing."""
        try:
            blocks = [BlockStatistics(**seen) for seen in values["blocks"]]
            return cls(**{**values, "blocks": blocks, "recent": list(values["recent"])})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"state_dict has another release's lr='auto' ({error}); load it with that release"
            ) from None


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """Of all elements."""
    parts = (part for tensor in tensors for part in tensor.reshape(-1).split(PART))
    total = sum(float(part.float().square().sum()) for part in parts)
    return math.sqrt(total / max(1, sum(tensor.numel() for tensor in tensors)))


def _mean_dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / max(1, len(a))

"""The central policy of `lr="auto"`: what `SPZO` does by itself with the rates that it finds.

The last of several blocks moves alone at first, as a new head that is learned first spares the
features below it (Kumar et al., arXiv 2202.10054), and its steps cost little. The others join it
one by one, from the back (gradual unfreezing: Howard and Ruder, arXiv 1801.06146). Then a block has
its turn in every step, unless its directions would do so little beside the last block's that they
are not worth their computation each time.

A block's first turns set its rate (`fedspzo.auto_lr.rates`), or the last block takes Newton steps
(`fedspzo.auto_lr.newton`). In the long run these rates fall, so that the noise that they add has a
bound.

Every few steps the trust ratio is checked (`fedspzo.auto_lr.trust_ratio`): a step that keeps too
little of its promise is halved until it keeps it, and the rates with it. Where the loss has left
its best value behind (`fedspzo.auto_lr.loss_monitor`), the steps since then are taken back and the
rates are halved; of a slow drift only the last steps are, and it is the rates that end it.

Everything follows from losses and weights, so it repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from fedspzo.estimators.float32 import to_float32
from fedspzo.estimators.step_report import StepReport

from .block_statistics import BlockStatistics, mean_product, root_mean_square
from .loss_monitor import LossMonitor
from .newton import Spectrum
from .rates import HALVE, RateSettings, longest_steps, rates
from .trust_ratio import Trial, halve_until_trusted, predicted
from .undo import Terms, terms, undoing

LEAD_STEPS = 16
"""Steps after which all blocks have joined the last one."""
LONGEST_INTERVAL = 8
"""Most steps from one turn of a block to its next."""
DECAY_POWER = 0.75
"""Power of STEADY_TURNS / turns by which a rate falls. The sum of such rates has no bound, and that
of their squares, as noise adds up, has one (Robbins and Monro, 1951)."""
CHECK_INTERVAL = 8
"""Steps between checks of the trust ratio."""
MEMORY = 64
"""Steps that can be taken back."""
LOST_STEPS = 4
"""Steps in a row without finite losses after which the last ones are taken back."""


@dataclass
class CentralPolicy:
    """Decides which blocks move, along what and at what rates, and which steps are taken back.

    Attributes:
        last_leads: the param groups are the blocks of a network, the last one what comes last in
            it; else they are just groups, each bounded like an only block.
        takes_turns: blocks take turns, the last one Newton steps, and no step is longer than one
            may be. False: every step moves all blocks along their gradients, as a federation's
            rounds do.
        factor: what checks and divergence have made of the rates that the bounds allow.
        lost_steps: steps in a row whose losses were not finite.
        blocks: what each block has shown; empty before the first step.
        losses: watches the steps' losses.
        recent: the terms of the steps since the best loss, oldest first.
    """

    last_leads: bool = True
    takes_turns: bool = True
    factor: float = 1.0
    lost_steps: int = 0
    blocks: list[BlockStatistics] = field(default_factory=list)
    losses: LossMonitor = field(default_factory=LossMonitor)
    recent: list[Terms] = field(default_factory=list)

    def copy(self) -> CentralPolicy:
        """Return one that goes its own way."""
        return replace(
            self,
            blocks=[replace(seen) for seen in self.blocks],
            losses=replace(self.losses),
            recent=[*self.recent],
        )

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each block; none before the first step."""
        return rates(self.blocks, self._settings, self.factor)

    @property
    def _settings(self) -> RateSettings:
        return RateSettings(last_leads=self.last_leads, decay=_decay)

    def measure(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Measure each block's weights, once: before the first step moves them."""
        if not self.blocks:
            self.blocks = [BlockStatistics(root_mean_square(tensors)) for tensors in groups]

    def measures_curvature(self, counts: Sequence[int]) -> bool:
        """Whether a block but the first that has directions still learns its rate.

        Args:
            counts: each block's number of directions.
        """
        later = zip(self.blocks[1:], counts[1:], strict=True)
        return not self.blocks or any(count and seen.is_learning for seen, count in later)

    def turns(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Return the next step's numbers of directions: 0 where it is not a block's turn.

        Args:
            counts: each block's number of directions in a turn.
        """
        if not self.last_leads or not self.takes_turns:
            return tuple(counts)
        last = max(block for block, count in enumerate(counts) if count)
        others = len(counts) - 1  # join the last one, from the back
        due = [
            self.losses.steps * others >= LEAD_STEPS * (others - block)
            and seen.steps_since_turn + 1 >= seen.turn_interval
            for block, seen in enumerate(self.blocks)
        ] or [False] * len(counts)
        return tuple(
            count if due[block] or block == last else 0 for block, count in enumerate(counts)
        )

    def learn(
        self,
        gradients: Sequence[Sequence[float]],
        curvatures: Sequence[float | None],
        costs: Sequence[float],
        spectrum: Spectrum | None = None,
    ) -> tuple[Sequence[float], ...]:
        """Learn from what a step has shown, before it is made; `rates` are then those of this step.

        Args:
            gradients: for each block, its directions' projected gradients; none where it rests.
            curvatures: for each block, its Hessian's trace as the step's losses show it, or None.
            costs: for each block, what a turn costs, in forward passes; for the last one, what a
                step of it alone costs.
            spectrum: of the last block's Hessian along its directions, if known.

        Returns:
            What the update is to follow in place of the gradients: the last block's are damped by
            its spectrum, and none is longer than a step may be.
        """
        followed = tuple(gradients)
        if not all(math.isfinite(mean_product(block, block)) for block in gradients):
            return followed
        if spectrum is not None:
            curvatures = (*curvatures[:-1], spectrum.typical_eigenvalue)
            damping = self.blocks[-1].add_eigenvalue(spectrum.typical_eigenvalue)
            if damping:
                damped = to_float32(spectrum.damp(gradients[-1], damping))
                followed = (*followed[:-1], damped)
        for seen, found, along, curvature in zip(
            self.blocks, gradients, followed, curvatures, strict=True
        ):
            seen.steps_since_turn += 1
            if found:
                seen.add_turn(len(found), mean_product(found, along), curvature)
        self._schedule_turns(costs)
        if not self.takes_turns:
            return followed
        longest = longest_steps(self.blocks, self._settings, self.factor)
        return tuple(map(_clipped, followed, self.rates, longest))

    def _schedule_turns(self, costs: Sequence[float]) -> None:
        """Set how long each block waits for its turn.

        A turn promises a fall of the loss by lr g^2. Where rates are about in proportion to the
        inverse of curvatures, its directions' noise is in proportion to that too, and by Neyman's
        allocation (docs/estimators.md) turns should be to the root of promise over cost.
        """
        worths = [
            rate * seen.smoothed_square / cost if cost else 0.0  # no directions, no turns
            for rate, seen, cost in zip(self.rates, self.blocks, costs, strict=True)
        ]
        for seen, worth in zip(self.blocks, worths, strict=True):
            if worth > 0 and worths[-1] > 0:
                turns = math.sqrt(worth / worths[-1])  # for each of the last block's
                seldom = turns * LONGEST_INTERVAL < 1
                seen.turn_interval = LONGEST_INTERVAL if seldom else max(1, int(1 / turns))

    def judge(self, report: StepReport, trial: Trial) -> StepReport:
        """Hold a step to what it promises, or take the last ones back, before it is made.

        Args:
            report: the step as its gradients want it; its losses are finite.
            trial: how to try it out.

        Returns:
            The step to make. `rates` are then those to go on with.
        """
        self.lost_steps = 0
        verdict = self.losses.observe(report.loss)
        if verdict == "best":
            self.recent.clear()
        del self.recent[:-MEMORY]  # a slow drift goes on for longer, and is told all the same
        if verdict == "diverged" and self.recent:
            return self._take_back(report)
        if self.check_is_due() and predicted(report) < 0:
            report, factor = halve_until_trusted(report, trial)
            self.factor *= factor
        if report.undone is None:
            self.recent.append(terms(report))
        return report

    def skip(self, report: StepReport) -> StepReport:
        """Decide on a step whose losses are not finite.

        A batch may have such losses. Where one after another has, it is the weights, and the last
        steps are taken back.

        Args:
            report: the step, which is skipped.

        Returns:
            The step to make: this one, or the way back.
        """
        self.lost_steps += 1
        if self.lost_steps < LOST_STEPS or not self.recent:
            return report
        self.lost_steps = 0
        return replace(self._take_back(report), skipped=False)

    def _take_back(self, report: StepReport) -> StepReport:
        """Return the step that takes the last ones back; from now on the rates are half."""
        self.factor *= HALVE
        report = undoing(report, self.recent)
        self.recent.clear()
        self.losses.restart()
        return report

    def check_is_due(self) -> bool:
        """Decide whether the trust ratio of the step at hand is checked, and take note of it.

        Each block's first turn is checked, every `CHECK_INTERVAL`th step, and a turn of a block
        after as many that were not.
        """
        waited = any(
            seen.steps_since_turn == 0
            and (seen.turns == 1 or seen.unchecked_turns > CHECK_INTERVAL)
            for seen in self.blocks
        )
        if self.losses.steps % CHECK_INTERVAL != 1 and not waited:
            return False
        for seen in self.blocks:
            if not seen.steps_since_turn:
                seen.unchecked_turns = 0
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a state_dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CentralPolicy:
        """Return the policy that `to_dict` returned the values of.

        Raises:
            ValueError: it returned other ones.
        """
        try:
            return cls(
                **{
                    **values,
                    "blocks": [BlockStatistics(**seen) for seen in values["blocks"]],
                    "losses": LossMonitor(**values["losses"]),
                    "recent": list(values["recent"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"state_dict has another release's lr='auto' ({error}); load it with that release"
            ) from None


def _decay(share: float) -> float:
    return math.pow(share, DECAY_POWER)


def _clipped(along: Sequence[float], rate: float, longest: float) -> Sequence[float]:
    """Return what a block's update follows, less where its step would be longer than any may be.

    The rate is by the mean gradient, and where losses are small that of a batch with an outlier is
    many times as large; to clip is what such noise asks for (Gorbunov et al., arXiv 2005.10785).

    Args:
        along: a coefficient for each of the block's directions.
        rate: its learning rate.
        longest: the largest root mean square change of a weight; 0: no bound.
    """
    # the root mean square change of a weight, of random directions
    length = rate * math.sqrt(mean_product(along, along) / max(1, len(along)))
    if not length > longest > 0:
        return along
    return to_float32([longest / length * g for g in along])

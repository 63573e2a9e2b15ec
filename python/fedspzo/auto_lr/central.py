"""The central policy of `lr="auto"`, which `SPZO` follows when it trains by itself.

The last of several blocks moves alone at first. Its steps cost little, and a new head that is
learned first spares the features below it (Kumar et al., arXiv 2202.10054). The others join it one
by one, from the back (gradual unfreezing: Howard and Ruder, arXiv 1801.06146). From then on a block
has its turn in every step, or more seldom if its directions do little beside the last block's for
the computation that they take.

A block's first turns set its rate (`fedspzo.auto_lr.rates`), or the last block takes Newton steps
(`fedspzo.auto_lr.newton`). In the long run these rates fall, so that the noise that they add has a
bound.

When the loss has left its best value behind (`fedspzo.auto_lr.loss_monitor`), the steps since then
are taken back and the rates are halved. After a slow drift only the last steps can be taken back,
and the lower rates end it.

Every decision follows from losses and weights, so a run repeats.
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
from .constants import HALVE, LEAD_STEPS, LONGEST_INTERVAL, LOST_STEPS, MEMORY
from .loss_monitor import LossMonitor
from .newton import Spectrum
from .rates import RateSettings, rates
from .undo import Terms, terms, undoing


@dataclass
class CentralPolicy:
    """Decides on turns and learning rates, and on the steps to take back.

    Attributes:
        last_leads: the param groups are the blocks of a network, in its order. False: they are
            just groups, each bounded like an only block. Default True.
        takes_turns: blocks take turns, and the last one takes Newton steps. False: every step
            moves all blocks along their gradients, as a federation's rounds do. Default True.
        after_frozen: frozen layers come before the first block. If it is the only one, it learns
            like a last block. Default False.
        factor: product of all halvings of the rates so far.
        lost_steps: number of steps in a row whose losses were not finite.
        blocks: the statistics of each block; empty before the first step.
        losses: the monitor of the steps' losses.
        recent: the terms of the steps since the best loss, oldest first.
    """

    last_leads: bool = True
    takes_turns: bool = True
    after_frozen: bool = False
    factor: float = 1.0
    lost_steps: int = 0
    blocks: list[BlockStatistics] = field(default_factory=list)
    losses: LossMonitor = field(default_factory=LossMonitor)
    recent: list[Terms] = field(default_factory=list)

    def copy(self) -> CentralPolicy:
        """Return a copy that shares no state with this policy."""
        return replace(
            self,
            blocks=[replace(stats) for stats in self.blocks],
            losses=replace(self.losses),
            recent=[*self.recent],
        )

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each block; empty before the first step."""
        return rates(self.blocks, self._settings, self.factor)

    @property
    def _settings(self) -> RateSettings:
        return RateSettings(last_leads=self.last_leads, after_frozen=self.after_frozen)

    def measure(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Measure each block's weights before the first step moves them; later calls do nothing.

        Args:
            groups: the tensors of each block.
        """
        if not self.blocks:
            self.blocks = [BlockStatistics(root_mean_square(tensors)) for tensors in groups]

    def learning(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Return the indices of the blocks that move and still learn their rates.

        Args:
            counts: number of directions of each block in this step.
        """
        learns = [stats.is_learning for stats in self.blocks] or [True] * len(counts)
        return tuple(block for block, count in enumerate(counts) if count and learns[block])

    def turns(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Return each block's number of directions in the next step; 0 if it is not its turn.

        Args:
            counts: number of directions of each block in a turn.
        """
        if not self.last_leads or not self.takes_turns:
            return tuple(counts)
        last = max(block for block, count in enumerate(counts) if count)
        others = len(counts) - 1  # join the last one, from the back
        due = [
            self.losses.steps * others >= LEAD_STEPS * (others - block)
            and stats.steps_since_turn + 1 >= stats.turn_interval
            for block, stats in enumerate(self.blocks)
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
        """Update the statistics and turns by a step that is about to be made.

        Afterwards `rates` are those of this step.

        Args:
            gradients: for each block, its directions' projected gradients; empty if it rests.
            curvatures: for each block, its Hessian's trace as the step's losses show it, or None.
            costs: for each block, the cost of a turn, in full forward passes; for the last one the
                cost of a step of it alone.
            spectrum: the spectrum of the last block's Hessian along its directions, if known.

        Returns:
            For each block, the numbers that the update follows: its gradients, or for the last
            block those of a Newton step, which are damped by its spectrum.
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
        for stats, found, along, curvature in zip(
            self.blocks, gradients, followed, curvatures, strict=True
        ):
            stats.steps_since_turn += 1
            if found:
                # few directions may show a curvature far below that of others
                size = None if curvature is None else abs(curvature)
                stats.add_turn(len(found), mean_product(found, along), size)
        self._schedule_turns(costs)
        return followed

    def _schedule_turns(self, costs: Sequence[float]) -> None:
        """Set the number of steps that each block waits for its turn.

        A turn promises a fall of the loss by lr g^2. If rates are about in proportion to inverse
        curvatures, so is the noise of a turn's directions. By Neyman's allocation
        (docs/estimators.md) the number of turns should then be in proportion to the square root of
        promise over cost.
        """
        worths = [  # 0 for a block without directions, which costs nothing
            rate * stats.smoothed_square / cost if cost else 0.0
            for rate, stats, cost in zip(self.rates, self.blocks, costs, strict=True)
        ]
        for stats, worth in zip(self.blocks, worths, strict=True):
            if worth > 0 and worths[-1] > 0:
                turns = math.sqrt(worth / worths[-1])  # for each turn of the last block
                seldom = turns * LONGEST_INTERVAL < 1
                stats.turn_interval = LONGEST_INTERVAL if seldom else max(1, int(1 / turns))

    def judge(self, report: StepReport) -> StepReport:
        """Decide on a step with finite losses, before it is made.

        Args:
            report: the step as it would be made; its losses are finite.

        Returns:
            The step to make: this one, or one that takes the last steps back in its place.
        """
        self.lost_steps = 0
        verdict = self.losses.observe(report.loss)
        if verdict == "best":
            self.recent.clear()
        del self.recent[:-MEMORY]  # a slow drift is longer, and its rest cannot be taken back
        if verdict == "diverged" and self.recent:
            return self._take_back(report)
        self.recent.append(terms(report))
        return report

    def skip(self, report: StepReport) -> StepReport:
        """Decide on a step whose losses are not finite.

        A single batch may have such losses. If `LOST_STEPS` in a row have them, the weights are to
        blame, and the last steps are taken back.

        Args:
            report: the step, which is skipped.

        Returns:
            The skipped step, or the step that takes the last ones back.
        """
        self.lost_steps += 1
        if self.lost_steps < LOST_STEPS or not self.recent:
            return report
        self.lost_steps = 0
        return replace(self._take_back(report), skipped=False)

    def _take_back(self, report: StepReport) -> StepReport:
        """Return the step that takes the recent ones back, and halve the rates."""
        self.factor *= HALVE
        report = undoing(report, self.recent)
        self.recent.clear()
        self.losses.restart()
        return report

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a state_dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CentralPolicy:
        """Return the policy that has the values that `to_dict` returned.

        Raises:
            ValueError: the values are those of another release.
        """
        try:
            return cls(
                **{
                    **values,
                    "blocks": [BlockStatistics(**stats) for stats in values["blocks"]],
                    "losses": LossMonitor(**values["losses"]),
                    "recent": list(values["recent"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"state_dict has another release's lr='auto' ({error}); load it with that release"
            ) from None

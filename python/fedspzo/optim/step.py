"""One step of `SPZO`: evaluate the loss at the estimator's points, work out the update, make it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from fedspzo.auto_lr.central import CentralPolicy
from fedspzo.auto_lr.newton import Spectrum, spectrum_along
from fedspzo.auto_lr.rates import newton_damping
from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.choices import Rounding, Sides, Stream
from fedspzo.estimators import Estimator
from fedspzo.estimators.anchored import Anchored
from fedspzo.estimators.defaults import can_take_newton_steps, every_share, newton_evaluations
from fedspzo.estimators.float32 import coefficients, to_float32
from fedspzo.estimators.points import Losses
from fedspzo.estimators.step_report import StepReport, terms_of
from fedspzo.evaluation.closures import private_gradients
from fedspzo.evaluation.evaluator import Evaluator
from fedspzo.evaluation.in_place import InPlaceBlock, MovableBlock
from fedspzo.evaluation.recording import Recording
from fedspzo.privacy import Mechanism
from fedspzo.seeds import step_rounding_seed

from .param_groups import Group, learning_rate, named


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Estimates the gradients of one step, and reports the update that they give.

    Attributes:
        number: the step's number, from 0.
        seed: the optimizer's seed.
        kind: the estimator's class.
        sides: "one" or "two".
        groups: the optimizer's param groups.
        shares: as `known_shares` returned them; None: not yet measured.
        replay: the activation replay.
        rounding: rounding of the update to the weights' dtype.
        stream: the noise stream of the directions.
        auto: the policy of lr="auto", which learns from the step; None: rates are as set.
        newton: the last block takes a Newton step. None: it does if lr="auto" may and it is cheap.
        privacy: makes the gradients private, or None.
        recording: returns a new recording of evaluations of the last block, which is moved in
            place. Default None: they run in full.
        looks_wider: if its losses are all equal, a warning says where the loss changes, which
            takes further evaluations. Default True.
    """

    number: int
    seed: int
    kind: type[Estimator]
    sides: Sides
    groups: Sequence[Group]
    shares: Sequence[float] | None
    replay: ActivationReplay
    rounding: Rounding
    stream: Stream
    auto: CentralPolicy | None
    newton: bool | None
    privacy: Mechanism | None
    recording: Callable[[], Recording] | None = None
    looks_wider: bool = True

    def estimator(self) -> Estimator:
        """Return the step's estimator. With lr="auto" some blocks may rest in it.

        Numbers of perturbations that are not yet known count as 2.

        Raises:
            ValueError: the numbers of perturbations do not fit the estimator.
        """
        given = (group["perturbations"] for group in self.groups)
        counts = tuple(2 if count is None else count for count in given)
        if not issubclass(self.kind, Anchored):
            return self.kind(sides=self.sides, perturbations=counts)
        counts = tuple(  # a block that was frozen needs no evaluations
            count if named(group) else 0 for count, group in zip(counts, self.groups, strict=True)
        )
        newton = self.newton
        if newton is None:
            cheap = can_take_newton_steps(counts[-1], self.every_share[-1])
            newton = cheap and may_take_newton_steps(self.kind, self.groups, self.auto)
        last = len(counts) - 1 if newton and counts[-1] else None
        if self.auto is None:
            return self.kind(sides=self.sides, perturbations=counts, newton=last)
        moving = self.auto.turns(counts) if any(counts) else counts
        return self.kind(
            sides=self.sides,
            perturbations=moving,
            mirrored=self.auto.learning(moving) if self.replay.layers else (),
            newton=last,
        )

    @property
    def takes_newton_step(self) -> bool:
        """Tell whether the last block takes a Newton step, which evaluates it many times."""
        estimator = self.estimator()
        return isinstance(estimator, Anchored) and estimator.newton is not None

    def estimate(
        self, blocks: Sequence[MovableBlock], evaluate: Callable[[], Tensor]
    ) -> StepReport:
        """Evaluate the estimator's points, and report the step to make.

        The replay is entered, and the groups have all their defaults.

        Args:
            blocks: the blocks, which move the weights that the evaluation sees. They are left at
                the last point.
            evaluate: returns the loss, a scalar; with privacy one loss an example, (B,).
        """
        estimator = self.estimator()
        seeds = estimator.seeds(self.seed, self.number)
        eps = estimator.scales([group["eps"] for group in self.groups])
        if self.auto is not None:
            self.auto.measure([[p for _, p in named(group)] for group in self.groups])
        evaluator = Evaluator(
            blocks, seeds, eps, self.replay, self.every_share, evaluate, self.recording
        )
        evaluator.visit(estimator.points())
        spectrum = None
        if isinstance(estimator, Anchored) and estimator.newton is not None:
            spectrum = spectrum_along(evaluator, estimator, eps)
        losses = evaluator.means()
        if self.privacy is None:
            found = estimator.gradients(losses, eps)
        else:
            found = private_gradients(self.privacy, estimator, evaluator.losses, eps)
        gradients = tuple(to_float32(block) for block in found)
        followed = self._learn(estimator, losses, gradients, eps, spectrum)
        report = self._report(estimator, losses, seeds, gradients, followed, evaluator.forwards)
        if report.skipped:
            return report if self.auto is None else self.auto.skip(report)
        return report if self.auto is None else self.auto.judge(report)

    def _learn(
        self,
        estimator: Estimator,
        losses: Losses,
        gradients: tuple[Sequence[float], ...],
        eps: Sequence[float],
        spectrum: Spectrum | None,
    ) -> tuple[Sequence[float], ...]:
        """Return the numbers that the update follows: the gradients, or those of a Newton step.

        The policy of lr="auto" learns from the step on the way.
        """
        if not all(map(math.isfinite, losses.values())):
            return gradients
        if len(set(losses.values())) == 1:  # they show no gradient, however large a rate may be
            return gradients
        if self.auto is None:
            if spectrum is None:
                return gradients
            rate = learning_rate(self.groups[-1])
            if not rate:  # as a schedule's first may be: the step moves nothing
                return gradients
            damped = spectrum.damp(gradients[-1], newton_damping(rate, len(gradients[-1])))
            return (*gradients[:-1], to_float32(damped))
        sides = 2 if self.sides == "two" else 1
        counts = [sides * group["perturbations"] for group in self.groups]
        if spectrum is not None:
            counts[-1] = newton_evaluations(self.groups[-1]["perturbations"])
        costs = [count * share for count, share in zip(counts, self.every_share, strict=True)]
        costs[-1] += 1  # the loss at theta, which the other blocks' turns share
        curvatures = estimator.curvatures(losses, eps)
        return self.auto.learn(gradients, curvatures, costs, spectrum)

    def _report(
        self,
        estimator: Estimator,
        losses: Losses,
        seeds: tuple[tuple[int, ...], ...],
        gradients: tuple[tuple[float, ...], ...],
        followed: tuple[Sequence[float], ...],
        forwards: float,
    ) -> StepReport:
        rates = self._rates()
        updates = tuple(map(coefficients, followed, rates))
        # a private step may not depend on the losses, not even by being skipped
        finite = () if self.privacy else losses.values()
        skipped = not all(map(math.isfinite, (*finite, *chain.from_iterable(gradients + updates))))
        zeros = tuple((0.0,) * len(block) for block in seeds)
        stochastic = self.rounding == "stochastic"
        return StepReport(
            step=self.number,
            loss=estimator.loss(losses),
            losses=tuple(losses.values()),
            seeds=seeds,
            gradients=zeros if skipped else gradients,
            followed=zeros if skipped else tuple(map(tuple, followed)),
            coefficients=zeros if skipped else updates,
            rounding_seed=step_rounding_seed(self.seed, self.number) if stochastic else None,
            forwards=forwards,
            skipped=skipped,
            lr=rates,
            stream=self.stream,
        )

    @property
    def every_share(self) -> tuple[float, ...]:
        """Every block's cost share; 1 for those that are not known."""
        return every_share(self.shares, len(self.groups))

    def _rates(self) -> tuple[float, ...]:
        """Return the learning rate that each block's update uses."""
        if self.auto is None:
            return tuple(learning_rate(group) for group in self.groups)
        scales = (group["lr_scale"] for group in self.groups)
        return tuple(rate * scale for rate, scale in zip(self.auto.rates, scales, strict=True))


def make_update(
    report: StepReport, blocks: Sequence[InPlaceBlock], groups: Sequence[Group], rounding: Rounding
) -> None:
    """Add a step's update to the weights, and let the next step start there.

    With weight decay the weights of a block that moves are first multiplied by 1 - lr *
    weight_decay (decoupled: Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        report: the step; it is not skipped.
        blocks: the blocks at the step's start.
        groups: their param groups.
        rounding: rounding of the update to the weights' dtype.
    """
    for group, block, seeds in zip(groups, blocks, report.seeds, strict=True):
        if group["weight_decay"] and seeds:  # a block without directions stays as it is
            rate = learning_rate(group) * group["weight_decay"]
            block.decay(1 - rate, group.get("no_decay", ()))
    for block, seeds, update in zip(blocks, report.seeds, report.coefficients, strict=True):
        block.move(terms_of(seeds, update), rounding=rounding, rounding_seed=report.rounding_seed)
    for block in blocks:
        block.settle()


def may_take_newton_steps(
    kind: type[Estimator], groups: Sequence[Group], auto: CentralPolicy | None
) -> bool:
    """Tell whether the last block may take Newton steps, if they are cheap enough.

    Args:
        kind: the estimator's class.
        groups: the optimizer's param groups.
        auto: the policy of lr="auto", or None.
    """
    # a Newton step's rate is an inverse curvature: weights would decay at once
    decays = groups[-1]["weight_decay"] > 0
    return issubclass(kind, Anchored) and auto is not None and auto.takes_turns and not decays

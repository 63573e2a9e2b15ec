"""SPZO: zeroth-order steps on the blocks of a network, as a torch optimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedspzo import estimators
from fedspzo.auto_lr.central import CentralPolicy
from fedspzo.auto_lr.newton import Spectrum, spectrum_along
from fedspzo.auto_lr.rates import START
from fedspzo.auto_lr.trust_ratio import Trial
from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.blocks.cost_shares import measure
from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.checks import check_positive, check_whole
from fedspzo.choices import EvaluationMode, Rounding
from fedspzo.estimators import Estimator
from fedspzo.estimators.anchored import Anchored
from fedspzo.estimators.defaults import (
    can_take_newton_steps,
    known_shares,
    newton_evaluations,
)
from fedspzo.estimators.float32 import coefficients, to_float32
from fedspzo.estimators.points import Losses
from fedspzo.estimators.step_report import StepReport, terms_of
from fedspzo.evaluation.closures import Closure, backward_explained, private_gradients, read_losses
from fedspzo.evaluation.evaluator import Evaluator
from fedspzo.evaluation.in_place import InPlaceBlock, MovableBlock
from fedspzo.evaluation.layerwise import Layerwise, default_scratch
from fedspzo.interrupts import HeldInterrupts
from fedspzo.privacy import NOT_PRIVATE, Mechanism
from fedspzo.seeds import SEED_LIMIT, step_rounding_seed

from .param_groups import (
    as_groups,
    distribute,
    fill_defaults,
    is_low,
    learning_rate,
    named,
    resolve,
)

# What continues a run bit for bit, besides the param groups. The estimator is compared.
_STATE = (
    *("sides", "rounding", "evaluation", "scratch_bytes", "seed", "steps", "skipped", "forwards"),
    "cost_shares",
)


class SPZO(Optimizer):
    """Zeroth-order fine-tuning: no backward pass, no gradients, no optimizer state.

    Each block is a param group with its own `lr`, `lr_scale`, `eps`, `perturbations` and
    `weight_decay`; a block's learning rate is `lr * lr_scale`. A step evaluates the closure's loss
    at perturbed weights (formulas: `fedspzo.estimators`), then adds `-lr g / P` along
    each direction (with lr="auto" at most that, or a Newton step). The noise is addressed by (seed,
    parameter name, element), so nothing is drawn from torch's generators.

    Args:
        params: a `Blocks` from `blocks.split(model)`; or, as one block without replay or dropout
            control (call `model.eval()` yourself), named parameters, parameters (addressed by
            their index) or param groups. What is frozen now is left alone, tied weights are
            taken once. A group with an `lr` of its own has an `lr_scale` of 1.
        lr: one learning rate, for block 1, where block b gets `P_b / P1` times it (kept as
            `lr_scale`), so that every direction counts alike; or a tuple, one a block; or "auto":
            one a block, found from losses and backed off when training diverges, for one more
            forward pass in every eighth step; at first the last block moves alone, and the others
            may wait for their turns (`fedspzo.auto_lr.central`). Where its evaluations are cheap,
            that block takes Newton steps (`fedspzo.auto_lr.newton`), unless it has weight decay or
            more than 32 directions. In several processes give `cost_shares`, so that all decide
            alike.
        estimator: "anchored" (default for several blocks), "balanced", "coupled", "mezo" (default
            for one), or one of your own (`estimators.register`).
        sides: "one" or "two". Default for "anchored" and "balanced": "one" in float32, "two" in
            bfloat16 and float16; for the others "two".
        perturbations: a sequence with one number a block, or one int for "mezo" (default 1).
            Default by the rule (`Anchored.default_perturbations`): P1 = 3 and P_b = 3 / sqrt(C_b),
            at most 32, the cost shares C_b measured in the first step; 8 to 32 for a last block
            that takes Newton steps.
        eps: the scale of the perturbations, one or a tuple. Default 1e-3 in float32, 5e-3 in
            bfloat16 and float16; 8 times as much for a block that takes Newton steps.
        weight_decay: decoupled: weights are multiplied by `1 - lr * weight_decay` just before the
            update. float32 only: lower precision would round it away.
        seed: of every direction, in [0, 2**64).
        rounding: of the update: "nearest" (default in float32) or "stochastic".
        evaluation: "in_place": weights are moved and moved back, which leaves rounding errors; or
            "layerwise": weights stay as they are, and perturbed copies exist one operation at a
            time, so that weights change by the update alone, to the bit. Default: "layerwise" in
            bfloat16 and float16, where in-place arithmetic drifts.
        scratch_bytes: the memory for layerwise evaluation's copies. Default: what the largest
            module in the stack of layers needs, at least 1 MiB. Larger weights, a head's or an
            embedding's, are perturbed some rows at a time.
        cost_shares: if known, for each block but the first, what an evaluation costs that replays
            the blocks before it, as a share of a forward pass: saves measuring it.
        privacy: makes every step differentially private (docs/privacy.md). The closure then returns
            the losses of the examples that `privacy.sample` drew, (B,), in place of their mean.

    Attributes:
        last_step: the `StepReport` of the last step, or None.
        steps: steps done, `skipped` ones among them.
        skipped: steps skipped because a loss was not finite.
        forwards: the cost of all evaluations so far, in full forward passes; with the first
            step's measurement, which evaluates once in full and once replayed from each cut, and
            the evaluation that is done again where layerwise evaluation falls back
            (docs/estimators.md).

    Raises:
        ValueError, TypeError: naming the argument, its value and the remedy.
    """

    def __init__(
        self,
        params: Blocks | Iterable[Any],
        lr: float | Sequence[float] | Literal["auto"] = 1e-4,
        *,
        estimator: str | None = None,
        sides: Literal["one", "two"] | None = None,
        perturbations: int | Sequence[int | None] | None = None,
        eps: float | Sequence[float] | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
        rounding: Rounding | None = None,
        evaluation: EvaluationMode | None = None,
        scratch_bytes: int | None = None,
        cost_shares: Sequence[float] | None = None,
        privacy: Mechanism | None = None,
    ) -> None:
        if rounding not in (None, "nearest", "stochastic"):
            raise ValueError(f"rounding is {rounding!r}; pass 'nearest' or 'stochastic'")
        if evaluation not in (None, "in_place", "layerwise"):
            raise ValueError(f"evaluation is {evaluation!r}; pass 'in_place' or 'layerwise'")
        if scratch_bytes is not None and scratch_bytes < 1:
            raise ValueError(f"scratch_bytes is {scratch_bytes!r}; pass an int of at least 1")
        blocks = params if isinstance(params, Blocks) else None
        if not isinstance(params, Blocks | Iterable):
            raise TypeError(
                f"params is a {type(params).__name__}; pass split(model) or Blocks.single(model)"
            )
        groups = params.param_groups() if isinstance(params, Blocks) else as_groups(params)
        if estimator is None:
            estimator = "anchored" if blocks and len(groups) > 1 else "mezo"
        kind = estimators.find(estimator)
        kind(sides=sides or "two", perturbations=(2,) * len(groups))  # checks them
        if perturbations is None:
            perturbations = 1 if kind.joint else (None,) * len(groups)
        elif not kind.joint and not isinstance(perturbations, Sequence):
            raise ValueError(
                f"perturbations is {perturbations!r}; {estimator!r} takes one number a block"
            )
        if isinstance(lr, str) and lr != "auto":
            raise ValueError(f"lr is {lr!r}; pass a number, one a block, or 'auto'")
        if isinstance(lr, str) and privacy is not None:
            raise ValueError(NOT_PRIVATE)
        self.auto = CentralPolicy(last_leads=blocks is not None) if isinstance(lr, str) else None
        lr = START if isinstance(lr, str) else lr
        settings = {"lr": lr, "eps": eps, "perturbations": perturbations}
        own = kind.joint or self.auto is not None or isinstance(lr, Sequence)
        for group in groups:
            # None: by the rule, once P is known. Not folded into lr, which schedulers own.
            group.setdefault("lr_scale", 1.0 if own or "lr" in group else None)
        for name, value in settings.items():
            distribute(groups, name, value)

        self.seed, self.steps = _checked_seed(seed), 0
        self.skipped = 0
        self.forwards = 0.0
        self.last_step: StepReport | None = None
        self.estimator = estimator
        self._kind = kind
        self.privacy = privacy
        self._model = blocks.model if blocks else None
        self._replay = (
            ActivationReplay(blocks.layers, blocks.starts)
            if blocks and not kind.joint
            else ActivationReplay(())
        )
        # without layers to replay every evaluation is a full forward
        self.cost_shares = known_shares(
            cost_shares, len(groups), replayed=bool(self._replay.layers)
        )
        self._indexed = 0
        super().__init__(groups, {"weight_decay": weight_decay})

        low = any(is_low(g) for g in self.param_groups)
        self.sides = sides or kind.default_sides(low)
        self.rounding: Rounding = rounding or ("stochastic" if low else "nearest")
        self.evaluation: EvaluationMode = evaluation or ("layerwise" if low else "in_place")
        self.scratch_bytes = scratch_bytes or default_scratch(
            self._model, self._replay.layers, self._named()
        )
        self._layerwise: Layerwise | None = None
        self._fill_defaults()
        self._estimator()  # checks estimator, sides and perturbations

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a block; torch's method, which also settles names, ties and defaults by dtype.

        Raises:
            ValueError: its parameters are not what a group can have; or steps with lr="auto", which
                measures all weights at the start, have been taken.
        """
        if self.auto is not None and self.auto.blocks:
            raise ValueError(
                "a param group is added after lr='auto' has measured the others; add it before the"
                " first step, or pass rates"
            )
        cuts = len(self._replay.starts)
        if cuts and len(self.param_groups) == cuts + 1:
            raise ValueError(
                "a param group is added to a network's blocks, which it is no part of; unfreeze its"
                " parameters first, and split the model then"
            )
        members = as_groups(param_group["params"])[0]["params"]
        group = {**self.defaults, **param_group, "params": members}
        if self._kind.joint and self.param_groups:
            count = self.param_groups[0]["perturbations"]
            if group.setdefault("perturbations", count) != count:
                raise ValueError(
                    f"perturbations is {group['perturbations']!r}, but the other groups have"
                    f" {count}, and {self.estimator!r} moves all along the same directions;"
                    " leave it out"
                )
        super().add_param_group(resolve(group, self.param_groups, self._indexed))
        self._indexed += len(members)
        if not self._replay.layers:
            self.cost_shares = known_shares(None, len(self.param_groups), replayed=False)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """Take one step.

        Args:
            closure: returns the loss of one batch, a scalar (with `privacy` one loss an example,
                which depends on that example alone); called without gradients, with
                the model in evaluation mode, and always for the same data: to accumulate over
                micro-batches, return their mean.

        Returns:
            The step's loss. Details, such as whether the step was skipped: `last_step`.

        Raises:
            ValueError: no closure.
            RuntimeError: in the first step, if the model does not work as it was split.
            Exception: whatever the closure raises, with the weights put back: bit for bit if
                layerwise, otherwise to the rounding of in-place arithmetic.
        """
        if closure is None:
            raise ValueError(
                "closure is None, but SPZO evaluates the loss several times a step; call"
                " step(lambda: model(**batch).loss)"
            )
        groups = self.param_groups
        stands = [InPlaceBlock(block, snapshot=False) for block in self._named()]
        with HeldInterrupts() as interrupts, ExitStack() as ways_back:
            for stand in stands:
                ways_back.callback(stand.restore)

            def evaluate() -> Tensor:
                # autocast keeps copies of the weights, and would not see them move
                torch.clear_autocast_cache()
                with interrupts.released(), backward_explained():
                    return read_losses(closure(), single=self.privacy is None)

            with evaluating(self._model), self._replay, self._unlearned_if_it_fails():
                if self.cost_shares is None:
                    later = [dict(named(group)) for group in groups[1:]]
                    self.cost_shares = measure(self._replay, later, lambda: evaluate().sum())
                    self.forwards += 1.0 + sum(self.cost_shares)
                self._fill_defaults()
                if self.evaluation == "in_place":
                    report = self._estimate(stands, evaluate)
                else:
                    report = self._estimate_layerwise(evaluate)
            if self.auto is not None:
                self._set_rates(self.auto.rates)
            if not report.skipped:
                for group, stand, seeds in zip(groups, stands, report.seeds, strict=True):
                    if group["weight_decay"] and seeds:  # a block without directions stays
                        stand.decay(1 - learning_rate(group) * group["weight_decay"])
                for stand, seeds, update in zip(
                    stands, report.seeds, report.coefficients, strict=True
                ):
                    stand.move(
                        terms_of(seeds, update),
                        rounding=self.rounding,
                        rounding_seed=report.rounding_seed,
                    )
                for stand in stands:
                    stand.settle()
            self.steps += 1
            self.forwards += report.forwards
            self.last_step = report
        if report.skipped:
            self._count_skip(report)
        return report.loss

    @contextmanager
    def _unlearned_if_it_fails(self) -> Iterator[None]:
        """Put back what lr="auto" has learned in a step that an exception ends."""
        known = self.auto and self.auto.copy()
        try:
            yield
        except BaseException:
            self.auto = known
            raise

    def _estimate_layerwise(self, evaluate: Callable[[], Tensor]) -> StepReport:
        """As `_estimate`, with stand-ins that are moved in the weights' place."""
        if self._layerwise is None:
            self._layerwise = Layerwise(self._model, self.scratch_bytes)
        layerwise = self._layerwise

        def again() -> None:
            self._replay.capture()
            self.forwards += 1.0

        with layerwise.virtual_parameters(self._named()) as stands:
            return self._estimate(stands, lambda: layerwise.watched(evaluate, again))

    def _estimate(
        self, stands: Sequence[MovableBlock], evaluate: Callable[[], Tensor]
    ) -> StepReport:
        """Evaluate the estimator's points and work out the update."""
        estimator = self._estimator()
        seeds = estimator.seeds(self.seed, self.steps)
        eps = estimator.scales([group["eps"] for group in self.param_groups])
        if self.auto is not None:
            self.auto.measure([group["params"] for group in self.param_groups])
        shares = self.cost_shares or ()
        evaluator = Evaluator(stands, seeds, eps, self._replay, shares, evaluate)
        spectrum = None
        if isinstance(estimator, Anchored) and estimator.newton is not None:
            spectrum = spectrum_along(evaluator, estimator, eps)
        evaluator.visit(estimator.points())
        losses = evaluator.means()
        if self.privacy is None:
            found = estimator.gradients(losses, eps)
        else:
            found = private_gradients(self.privacy, estimator, evaluator.losses, eps)
        gradients = tuple(to_float32(g) for g in found)
        followed = self._learn(estimator, losses, gradients, eps, spectrum)
        rates = self._rates()
        updates = tuple(map(coefficients, followed, rates))
        # whether a private step is taken must not tell of a loss
        finite = () if self.privacy else losses.values()
        skipped = not all(map(math.isfinite, (*finite, *chain.from_iterable(gradients + updates))))
        zeros = tuple((0.0,) * len(block) for block in seeds)
        report = StepReport(
            step=self.steps,
            loss=estimator.loss(losses),
            losses=tuple(losses.values()),
            seeds=seeds,
            gradients=zeros if skipped else gradients,
            coefficients=zeros if skipped else updates,
            rounding_seed=(
                step_rounding_seed(self.seed, self.steps) if self.rounding == "stochastic" else None
            ),
            forwards=evaluator.forwards,
            skipped=skipped,
            lr=rates,
        )
        if self.auto is None:
            return report
        if skipped:
            return self.auto.skip(report)
        moved = next(block for block, found in enumerate(gradients) if found)

        def look() -> Tensor:
            if moved:  # what comes before it stays as it was captured
                self._replay.replay(moved)
            else:
                self._replay.capture()
            return evaluate()

        dtypes = {parameter.dtype for group in self.param_groups for parameter in group["params"]}
        return self.auto.judge(report, Trial(stands, look, (1.0, *shares)[moved], dtypes))

    def _learn(
        self,
        estimator: Estimator,
        losses: Losses,
        gradients: tuple[Sequence[float], ...],
        eps: Sequence[float],
        spectrum: Spectrum | None,
    ) -> tuple[Sequence[float], ...]:
        """Return what the update follows: the gradients, or what lr="auto" makes of them."""
        if self.auto is None or not all(map(math.isfinite, losses.values())):
            return gradients
        shares = (1.0, *(self.cost_shares or ()))
        sides = 2 if self.sides == "two" else 1
        counts = [sides * group["perturbations"] for group in self.param_groups]
        if spectrum is not None:
            counts[-1] = newton_evaluations(self.param_groups[-1]["perturbations"])
        costs = [count * share for count, share in zip(counts, shares, strict=True)]
        costs[-1] += 1  # the loss where the weights are, which the other blocks' turns share
        curvatures = estimator.curvatures(losses, eps)
        return self.auto.learn(gradients, curvatures, costs, spectrum)

    def _fill_defaults(self) -> None:
        newton = self._may_take_newton_steps
        fill_defaults(self.param_groups, self._kind, self.cost_shares, newton=newton)

    def _estimator(self) -> Estimator:
        """The estimator of the next step."""
        given = (group["perturbations"] for group in self.param_groups)
        counts = tuple(2 if count is None else count for count in given)
        if self.auto is None or not issubclass(self._kind, Anchored):
            return self._kind(sides=self.sides, perturbations=counts)
        share = (self.cost_shares or (1.0,))[-1]
        newton = self._may_take_newton_steps and can_take_newton_steps(counts[-1], share)
        return self._kind(
            sides=self.sides,
            perturbations=self.auto.turns(counts) if any(counts) else counts,
            mirrored=bool(self._replay.starts) and self.auto.measures_curvature(counts),
            newton=len(counts) - 1 if newton else None,
        )

    @property
    def _may_take_newton_steps(self) -> bool:
        """Whether the last block may take Newton steps."""
        newton = self.auto is not None and self.auto.takes_turns
        # a Newton step's rate is an inverse curvature: weights would decay at once
        decays = self.param_groups[-1]["weight_decay"] > 0
        return issubclass(self._kind, Anchored) and newton and not decays

    def _named(self) -> list[list[tuple[str, Tensor]]]:
        return [named(group) for group in self.param_groups]

    def _count_skip(self, report: StepReport) -> None:
        self.skipped += 1
        if self.skipped == 1:
            warnings.warn(
                f"step {report.step} was skipped: losses {report.losses} or their differences are"
                " not finite. Later skips are counted in `skipped` without a warning",
                stacklevel=3,
            )

    def step_at(self, seed: int, step: int = 0, lr: Sequence[float] | None = None) -> None:
        """Choose where the next step stands: its directions, and its learning rates.

        A federation's client calls this before each round, so that its steps follow from the plan
        alone, whatever it did before.

        Args:
            seed: of the sequence of directions, in [0, 2**64).
            step: the next step's number in that sequence, in [0, 2**64). Later steps count on from
                it.
            lr: one learning rate a block, used as it is: each block's `lr_scale` becomes 1. None
                (default): the rates stay.

        Raises:
            ValueError: naming the argument, its value and the remedy. Nothing has changed then.
        """
        _checked_seed(seed)
        check_whole("step", step, 0, SEED_LIMIT - 1)
        if lr is not None:
            if self.auto is not None:
                raise ValueError(f"lr is {lr!r}, but this optimizer finds its rates; leave it out")
            if len(lr) != len(self.param_groups):
                raise ValueError(
                    f"lr is {lr!r}, but there are {len(self.param_groups)} blocks; give each one"
                )
            for rate in lr:
                check_positive("lr", rate)
            for group in self.param_groups:
                group["lr_scale"] = 1.0
            self._set_rates(lr)
        self.seed, self.steps = seed, step

    def _rates(self) -> tuple[float, ...]:
        """Return the learning rate that each block's update uses."""
        if self.auto is None:
            return tuple(learning_rate(group) for group in self.param_groups)
        scales = (group["lr_scale"] for group in self.param_groups)
        return tuple(rate * scale for rate, scale in zip(self.auto.rates, scales, strict=True))

    def _set_rates(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    def __getstate__(self) -> dict[str, Any]:
        """It holds the model's layers: a copy would move others."""
        raise TypeError(
            "SPZO is bound to its model and is not copied or pickled; keep its state_dict(), and"
            " load that into one that is built for the other model"
        )

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and under "spzo" what it takes to continue bit for bit: plain values."""
        state = {name: getattr(self, name) for name in ("estimator", *_STATE)}
        state["auto"] = self.auto and self.auto.to_dict()
        return {**super().state_dict(), "spzo": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`: settings, counters and each block's options.

        Raises:
            ValueError: it is another optimizer's, or of differently named parameters.
        """
        state = state_dict.get("spzo", {})
        if state.keys() != {"estimator", "auto", *_STATE}:
            raise ValueError("state_dict is not what SPZO.state_dict() returned; pass that")
        mine, saved = (
            [group["param_names"] for group in groups]
            for groups in (self.param_groups, state_dict["param_groups"])
        )
        if state["estimator"] != self.estimator:
            raise ValueError(
                f"state_dict is of estimator {state['estimator']!r}; build SPZO with it, not with"
                f" {self.estimator!r}"
            )
        if mine != saved:
            raise ValueError(
                "state_dict names other parameters than this optimizer's; build SPZO from the same"
                " model, split at the same layer"
            )
        auto = state["auto"] and CentralPolicy.from_dict(state["auto"])
        if auto and self.privacy is not None:
            raise ValueError(NOT_PRIVATE)
        super().load_state_dict(state_dict)
        self._layerwise = None
        self.auto = auto
        for name in _STATE:
            setattr(self, name, state[name])


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed is {seed!r}; pass an int in [0, 2**64)")
    return seed

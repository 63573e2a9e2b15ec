"""`SPZO`: zeroth-order steps on the blocks of a network, as a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from fedspzo.auto_lr.central import CentralPolicy
from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.shards import check_shards
from fedspzo.checks import check_whole
from fedspzo.choices import EvaluationMode, Rounding, Sides, Stream
from fedspzo.estimators.defaults import known_shares
from fedspzo.estimators.step_report import StepReport
from fedspzo.evaluation.accumulation import refuse_accelerates
from fedspzo.evaluation.closures import Closure
from fedspzo.evaluation.in_place import InPlaceBlock, MovableBlock
from fedspzo.evaluation.layerwise import default_scratch
from fedspzo.interrupts import HeldInterrupts
from fedspzo.privacy import Mechanism, public_setting
from fedspzo.seeds import SEED_LIMIT, check_seed

from .arguments import check_arguments, find_estimator
from .evaluations import Evaluations
from .first_order_loops import RefusesFirstOrderLoops
from .held_parameters import HeldParameters
from .param_groups import (
    as_groups,
    as_named,
    check_joins,
    distribute_settings,
    fill_defaults,
    is_low,
    named,
    plain,
    resolve,
    set_rates,
    use_rates,
)
from .retaken import KnownLosses, NoReplay, Still
from .state import STATE, TOLD, checked_state, settings_of
from .step import Step, make_update, may_take_newton_steps
from .told import Told


class SPZO(RefusesFirstOrderLoops, Optimizer):
    """Fine-tunes by zeroth-order steps: no backward pass, no gradients, no optimizer state.

    Each block is a param group with its own `lr`, `lr_scale`, `eps`, `perturbations` and
    `weight_decay`. Its learning rate is `lr * lr_scale`. A step evaluates the closure's loss at
    perturbed weights (the formulas are in `fedspzo.estimators`). Then it adds `-lr g / P` along
    each of a block's P directions, where g is the direction's projected gradient, or along the last
    block's those of a damped Newton step. The noise is a function of (seed, parameter name,
    element), so nothing is drawn from torch's generators.

    Args:
        params: a `Blocks` from `blocks.split(model)`. Or named parameters, parameters (addressed
            by their index) or param groups; these are trained without replay and without control
            of dropout (call `model.eval()` yourself). Parameters that are frozen now are left
            alone, and so are those that you freeze later. Tied weights are taken once.
        lr: one learning rate (default 1e-4), or a tuple with one for each block, or "auto". One
            rate is block 1's, and block b gets `D_b / D_1` times it, kept as its `lr_scale`, D_b
            being its number of directions in a step, so that every direction counts alike. A
            group with an `lr` of its own has an `lr_scale` of 1.
            "auto" finds a rate for each block from losses. When training diverges, it takes the
            last steps back and halves the rates. At first the last block moves alone, and the
            others may wait for their turns (`fedspzo.auto_lr.central`). In several processes pass
            `process_group`, or `cost_shares` if the closure averages the loss, so that all decide
            alike.
        estimator: "anchored" (default for several blocks, and for one after frozen layers),
            "balanced", "coupled", "mezo" (default for one block), or one of your own
            (`estimators.register`).
        sides: "one" or "two". Default for "anchored" and "balanced": "one" in float32, "two" in
            bfloat16 and float16. Default for the others: "two".
        perturbations: a sequence with one number for each block, or one int for "mezo" (default
            1). By default (`Anchored.default_perturbations`) P1 = 3 and P_b = 3 / sqrt(C_b), at
            most 32, with the cost shares C_b measured in the first step; a last block that takes
            Newton steps gets 8 to 32.
        eps: the scale of the perturbations, one number or a tuple with one for each block. Default
            1e-3 in float32, 5e-3 in bfloat16 and float16. It is 8 times as much for a block that
            takes Newton steps.
        weight_decay: decoupled weight decay: weights are multiplied by `1 - lr * weight_decay` just
            before the update. Default 0. It needs float32, as lower precision would round it away.
        no_decay: parts of names, such as ("bias", "norm"). A parameter whose name has one of them
            does not decay, in whichever block it is. Default: all decay.
        seed: the seed of all directions, in [0, 2**64). Default 0.
        rounding: rounding of the update, "nearest" (default in float32) or "stochastic" (default
            in bfloat16 and float16).
        evaluation: "in_place" moves weights and moves them back, which leaves rounding errors.
            "layerwise" leaves weights as they are: perturbed copies exist one operation at a time,
            so that weights change by the update alone, to the bit. Default: "layerwise" in
            bfloat16 and float16, where in-place arithmetic drifts, else "in_place".
        stream: the noise stream of the directions (docs/noise.md): "normal-v1" (default), Gaussian;
            or "rademacher-v1", signs, which take less time to make.
        scratch_bytes: memory for layerwise evaluation's copies, in bytes. Default: the size of the
            largest module in the layer stack, at least 1 MiB. Larger weights, such as a head's or
            an embedding's, are perturbed some rows at a time.
        cost_shares: for each block but the first, the cost of an evaluation that replays the blocks
            before it, as a share of a forward pass, in (0, 1]. Where frozen layers come before
            block 1, block 1's share comes first. Default: measured in the first step.
        newton: the last block takes damped Newton steps along its directions, at its learning
            rate: no longer than a plain step, and shorter where the curvature is high
            (`fedspzo.auto_lr.newton`). They take 4 evaluations of the block a direction, and the
            estimator has to be "anchored". Default: False; with lr="auto" True if they are cheap
            and the block has no weight decay.
        privacy: makes every step differentially private (docs/privacy.md). The closure then returns
            the losses of the examples that `privacy.sample` drew, (B,), in place of their mean.
        process_group: averages the closure's losses over these processes, each of which has its own
            share of the data, so that all take the same step. Default: none. Every one of them
            builds the optimizer alike and calls `step` as often (docs/trainers.md).

    Attributes:
        last_step: the `StepReport` of the last step, or None.
        steps: number of steps done, skipped ones included.
        skipped: number of steps skipped because a loss was not finite.
        process_group: the processes that take the same steps, or None.
        looks_wider: the first step whose losses are all equal looks further away for a change, to
            say in its warning where there is one. In place this leaves rounding errors. Default
            True. False: weights follow from the steps' losses alone.
        forwards: cost of all evaluations so far, in full forward passes. It includes the first
            step's checks and the evaluation that is repeated if layerwise evaluation falls back
            (docs/evaluation.md). A replayed evaluation in which some calls had another input, and
            so ran in full, costs as much more.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it, its value and the remedy.
    """

    def __init__(
        self,
        params: Blocks | Iterable[Any],
        lr: float | Sequence[float] | Literal["auto"] = 1e-4,
        *,
        estimator: str | None = None,
        sides: Sides | None = None,
        perturbations: int | Sequence[int | None] | None = None,
        eps: float | Sequence[float] | None = None,
        weight_decay: float = 0.0,
        no_decay: Sequence[str] = (),
        seed: int = 0,
        rounding: Rounding | None = None,
        evaluation: EvaluationMode | None = None,
        stream: Stream = "normal-v1",
        scratch_bytes: int | None = None,
        cost_shares: Sequence[float] | None = None,
        newton: bool | None = None,
        privacy: Mechanism | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        check_arguments(
            lr=lr,
            rounding=rounding,
            evaluation=evaluation,
            stream=stream,
            scratch_bytes=scratch_bytes,
            newton=newton,
            privacy=privacy,
            process_group=process_group,
        )
        lr, eps = plain(lr), plain(eps)
        blocks = params if isinstance(params, Blocks) else None
        groups = as_groups(params)
        kind = find_estimator(estimator, blocks, len(groups), sides, newton)
        distribute_settings(groups, kind, lr=lr, eps=eps, perturbations=perturbations)

        self.auto = None
        if isinstance(lr, str):
            frozen = blocks is not None and blocks.frozen > 0
            self.auto = CentralPolicy(last_leads=blocks is not None, after_frozen=frozen)
        check_seed("seed", seed)
        self.seed, self.steps, self.skipped = seed, 0, 0
        self.forwards = 0.0
        self.looks_wider = True
        self.last_step: StepReport | None = None
        self.estimator = kind.name
        self.newton = newton
        self._kind = kind
        self.privacy = privacy
        self.process_group = process_group
        self._model = blocks.model if blocks else None
        self._replay = blocks.replay(joint=kind.joint) if blocks else ActivationReplay(())
        self.cost_shares = known_shares(
            cost_shares,
            len(groups),
            replayed=bool(self._replay.layers),
            frozen=self._replay.has_frozen,
        )
        self._blocks = len(groups) if self._replay.layers else 0
        self._indexed = 0
        self._held = HeldParameters(self._model)
        self._evaluations = Evaluations(self._model, self._replay, process_group)
        super().__init__(groups, {"weight_decay": weight_decay, "no_decay": no_decay})

        low = any(is_low(g) for g in self.param_groups)
        self.sides = sides or kind.default_sides(low)
        self.rounding: Rounding = rounding or ("stochastic" if low else "nearest")
        self.evaluation: EvaluationMode = evaluation or ("layerwise" if low else "in_place")
        self.stream: Stream = stream
        self.scratch_bytes = scratch_bytes or default_scratch(
            self._model, self._replay.layers, [named(group) for group in self.param_groups]
        )
        self._told = Told()
        self._fill_defaults()
        self._next_step().estimator()  # raises if the perturbations do not fit

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a block.

        Beyond what torch does, this settles the parameters' names and ties, and fills the defaults
        that depend on their dtype.

        Args:
            param_group: `params` and options, as torch takes them.

        Raises:
            ValueError: its parameters are not what a group can have, or a block cannot be added.
        """
        if self.auto is not None and self.auto.blocks:
            raise ValueError(
                "a param group is added after lr='auto' has measured the others; add it before the"
                " first step, or pass rates"
            )
        members = as_groups(param_group["params"])[0]["params"]
        check_shards(self._model, as_named(members, self._indexed))
        group = {**self.defaults, **param_group, "params": members}
        check_joins(group, self.param_groups, self._kind, blocks=self._blocks)
        super().add_param_group(resolve(group, self.param_groups, self._indexed))
        self._evaluations.reshard()
        self._held.settle(self.param_groups)
        self._indexed += len(members)
        if not self._replay.layers:
            self.cost_shares = known_shares(None, len(self.param_groups), replayed=False)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """Take one step.

        Args:
            closure: returns the loss of one batch, a scalar. With `privacy` it returns one loss an
                example, (B,), each of which depends on that example alone. It is called without
                gradients and with the model in evaluation mode. Every call of a step must see the
                same data. For micro-batches see `fedspzo.accumulate`.

        Returns:
            The step's loss. `last_step` has the details, such as whether the step was skipped.

        Raises:
            ValueError: there is no closure.
            RuntimeError: the model does not work as it was split, or the loss changes from call to
                call. The first step finds this out. Or with a `process_group` the step failed in
                another process, or that one is at another step.
            Exception: whatever the closure raises. The weights are put back: bit for bit if
                evaluation is layerwise, otherwise to the rounding of in-place arithmetic.
        """
        if closure is None:
            raise ValueError(
                "closure is None, but SPZO evaluates the loss several times a step; call"
                " step(lambda: model(**batch).loss)"
            )
        refuse_accelerates()
        self._told.of_unused_rates(self.auto, self.param_groups)
        self._evaluations.reshard()
        self._held.check(self.param_groups)
        if self._evaluations.must_meet:
            self._evaluations.meet(self.param_groups, settings_of(self))
        blocks = self._in_place_blocks()
        with HeldInterrupts() as interrupts, ExitStack() as ways_back:
            for block in blocks:
                ways_back.callback(block.restore)
            single = self.privacy is None
            number = self.steps
            evaluations = self._evaluations.of(closure, interrupts, number=number, single=single)
            with evaluations as evaluate, self._unlearned_if_it_fails():
                report = self._estimate(blocks, evaluate)
            if self.auto is not None:
                set_rates(self.param_groups, self.auto.rates)
            if not report.skipped:
                make_update(report, blocks, self.param_groups, self.rounding)
            self.steps += 1
            self.forwards += report.forwards + self._evaluations.spent
            self._evaluations.spent = 0.0
            self.last_step = report
        if self._evaluations.processes_apart:
            self._told.of_processes_apart()
        if report.skipped:
            self.skipped += 1
            self._told.of_skip(report, self.skipped)
        return report.loss

    @torch.no_grad()
    def retake(self, losses: Tensor, *, move: bool = True) -> None:
        """Take the next step again, from the losses that it had, without running the model.

        The weights, lr="auto" and the next step's number are then those of the optimizer that took
        the step, bit for bit, if all began alike. (If that one `looks_wider`, its look after a step
        whose losses were all equal left other rounding errors.)

        Args:
            losses: the step's `StepReport.losses`, in the dtype of the closure's loss,
                (evaluations,).
            move: False: no weight is read or written, and lr="auto" learns all the same. The first
                step has to find the weights as it did. Default True.

        Raises:
            ValueError: these are not the losses of such a step. Nothing has changed then, but for
                the rounding of in-place arithmetic.
        """
        self._held.check(self.param_groups)
        self._fill_defaults()
        known = KnownLosses(losses)
        step = replace(self._next_step(), replay=NoReplay(self._replay.layers))
        blocks = self._in_place_blocks()
        moving = move and self.evaluation == "in_place"
        moved: list[MovableBlock] = [*blocks] if moving else [Still()] * len(blocks)
        if step.takes_newton_step:  # the last block is moved from a copy
            moved[-1] = Still()
        with HeldInterrupts(), ExitStack() as ways_back:
            for block in blocks:
                ways_back.callback(block.restore)
            with self._unlearned_if_it_fails():
                report = step.estimate(moved, known)
                known.finish()
            if self.auto is not None:
                set_rates(self.param_groups, self.auto.rates)
            if move and not report.skipped:
                make_update(report, blocks, self.param_groups, self.rounding)
            self.steps += 1

    def _in_place_blocks(self) -> list[InPlaceBlock]:
        return [
            InPlaceBlock(named(group), snapshot=False, stream=self.stream)
            for group in self.param_groups
        ]

    @contextmanager
    def _unlearned_if_it_fails(self) -> Iterator[None]:
        """Forget what lr="auto" has learned inside the `with` block, if an exception ends it."""
        known = self.auto and self.auto.copy()
        try:
            yield
        except BaseException:
            self.auto = known
            raise

    def _estimate(
        self, blocks: Sequence[InPlaceBlock], evaluate: Callable[[], Tensor]
    ) -> StepReport:
        """Estimate the next step, once the defaults are known that follow from cost shares."""
        shares = self._evaluations.first_shares(self.param_groups, self.cost_shares, evaluate)
        self.cost_shares = shares
        self._fill_defaults()
        scratch = self.scratch_bytes if self.evaluation == "layerwise" else None
        return self._evaluations.estimate(self._next_step(), blocks, evaluate, scratch)

    def _next_step(self) -> Step:
        return Step(
            number=self.steps,
            seed=self.seed,
            kind=self._kind,
            sides=self.sides,
            groups=self.param_groups,
            shares=self.cost_shares,
            replay=self._replay,
            rounding=self.rounding,
            stream=self.stream,
            auto=self.auto,
            newton=self.newton,
            privacy=self.privacy,
            looks_wider=self.looks_wider,
        )

    def _fill_defaults(self) -> None:
        newton = self.newton
        if newton is None:
            newton = may_take_newton_steps(self._kind, self.param_groups, self.auto)
        fill_defaults(
            self.param_groups, self._kind, self.cost_shares, sides=self.sides, newton=newton
        )

    def step_at(self, seed: int, step: int = 0, lr: Sequence[float] | None = None) -> None:
        """Set the next step's directions and learning rates.

        A federation's client calls this before each round, so that its steps follow from the plan
        alone, whatever it did before.

        Args:
            seed: the seed of the sequence of directions, in [0, 2**64).
            step: the next step's number in that sequence, in [0, 2**64). Default 0. Later steps
                count on from it.
            lr: one learning rate for each block, used as it is: each block's `lr_scale` becomes 1.
                None (default): the rates stay.

        Raises:
            ValueError: an argument is wrong; the message names it, its value and the remedy.
                Nothing has changed then.
        """
        check_seed("seed", seed)
        check_whole("step", step, 0, SEED_LIMIT - 1)
        if lr is not None:
            if self.auto is not None:
                raise ValueError(f"lr is {lr!r}, but this optimizer finds its rates; leave it out")
            use_rates(self.param_groups, lr)
        self.seed, self.steps = seed, step

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled, as a copy would move the weights of another model."""
        raise TypeError(
            "SPZO is bound to its model and is not copied or pickled; keep its state_dict(), and"
            " load that into one that is built for the other model"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state, and under "spzo" the plain values that continue it bit for bit."""
        state = {name: getattr(self, name) for name in ("estimator", *STATE)}
        state["auto"] = self.auto and self.auto.to_dict()
        state[TOLD] = self._evaluations.told_of_equal_losses
        return {**super().state_dict(), "spzo": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()`: settings, counters and each block's options.

        Raises:
            ValueError: it is another optimizer's, or its parameters have other names.
        """
        state = checked_state(state_dict, self.estimator, self.param_groups)
        auto = state["auto"] and CentralPolicy.from_dict(state["auto"])
        public = public_setting("auto" if auto else None, state["newton"])
        if self.privacy is not None and public:
            raise ValueError(public)
        super().load_state_dict(state_dict)
        self.auto = auto
        for name in STATE:
            setattr(self, name, state[name])
        told = state.get(TOLD, self._evaluations.told_of_equal_losses)
        self._evaluations.restart(checked=self.forwards > 0, told=told)

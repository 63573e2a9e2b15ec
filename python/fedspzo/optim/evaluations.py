"""The evaluations of a step: the closure's loss at moved weights, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.blocks.shards import check_shards, gathering_modules, is_sharded, reshard
from fedspzo.estimators.step_report import StepReport
from fedspzo.evaluation.closures import Closure, backward_refused, read_losses
from fedspzo.evaluation.in_place import InPlaceBlock
from fedspzo.evaluation.layerwise import Layerwise
from fedspzo.evaluation.recording import Recording
from fedspzo.evaluation.running_statistics import kept_running_statistics
from fedspzo.evaluation.scratch_buffer import footprint
from fedspzo.interrupts import HeldInterrupts

from .closure_checks import ClosureChecks
from .param_groups import Group, named
from .processes import Processes
from .step import Step


class Evaluations:
    """Evaluates the closures of an optimizer's steps.

    Args:
        model: the optimizer's model; None: bare parameters.
        replay: its activation replay.
        group: the processes that take the steps together, or None.

    Attributes:
        spent: the cost of evaluations that no step's report counts, in full forward passes.
    """

    def __init__(
        self, model: nn.Module | None, replay: ActivationReplay, group: dist.ProcessGroup | None
    ) -> None:
        self.spent = 0.0
        self._model, self._replay = model, replay
        self._processes = Processes(group)
        self._checks = ClosureChecks(replay, model)
        self._layerwise: Layerwise | None = None
        self._gathering: dict[str, Any] = {}
        self._watched: list[Tensor] = []
        self._released: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def told_of_equal_losses(self) -> bool:
        """The warning of a step whose losses are all equal has been given."""
        return self._checks.told

    @property
    def must_meet(self) -> bool:
        """The processes have to `meet` before the next step."""
        return self._processes.must_meet

    @property
    def processes_apart(self) -> bool:
        """There are several processes, and each seems to train a model of its own."""
        return self._processes.apart

    def restart(self, *, checked: bool, told: bool) -> None:
        """Begin anew from a state that was loaded.

        Args:
            checked: the first step of that state was checked.
            told: the warning of equal losses was given.
        """
        self._layerwise = None
        self._checks.done, self._checks.told = checked, told

    def reshard(self) -> None:
        """Let the model have its own parameters again, where it has gathered them from shards."""
        self._gathering = gathering_modules(self._model)
        reshard(self._gathering)

    def meet(self, groups: Sequence[Group], settings: Mapping[str, Any]) -> None:
        """Check before a step that `must_meet` what the processes share, and watch its closure.

        Args:
            groups: the optimizer's param groups.
            settings: what all steps follow from, by name.

        Raises:
            ValueError: parameters are sharded in a way that a step cannot follow, or the processes
                differ.
        """
        every = dict(chain.from_iterable(named(group) for group in groups))
        check_shards(self._model, every.items())
        if self._model is not None:
            every |= self._model.named_parameters()
        self._processes.meet(every, settings)
        self._watched = [parameter for group in groups for parameter in group["params"]]

    @contextmanager
    def of(
        self, closure: Closure, interrupts: HeldInterrupts, *, number: int, single: bool
    ) -> Iterator[Callable[[], Tensor]]:
        """Let the model be evaluated inside the `with` block, and replayed.

        Args:
            closure: the step's closure.
            interrupts: are held, but while the closure runs.
            number: the step's number.
            single: the closure returns one loss; else one an example, (B,).

        Yields:
            A function that returns the closure's loss at the weights as they are.
        """
        watched, self._watched = self._watched, []
        self._released = interrupts.released

        def read() -> Tensor:
            return read_losses(closure(), single=single)

        def evaluate() -> Tensor:
            # autocast keeps copies of the weights, and would not see them move
            torch.clear_autocast_cache()
            reshard(self._gathering)
            watching = self._processes.watching() if watched else nullcontext()
            with interrupts.released(), backward_refused(watched), watching:
                # this process may have to run the model again, whatever the others do
                loss = self._replay.evaluated(read)
            return self._processes.joined(loss)

        bare = self._model is None
        kept = kept_running_statistics() if bare else nullcontext()
        try:
            with self._processes.step(number), evaluating(self._model), kept, self._replay:
                yield evaluate
        finally:
            reshard(self._gathering)

    def first_shares(
        self,
        groups: Sequence[Group],
        given: tuple[float, ...] | None,
        evaluate: Callable[[], Tensor],
    ) -> tuple[float, ...] | None:
        """Check before the first step that the model works as it was split.

        Args:
            groups: the optimizer's param groups.
            given: their cost shares, if they are known.
            evaluate: returns the loss.

        Returns:
            The cost shares, which are measured if they are not known.
        """
        if self._checks.done or not self._replay.layers:
            return given
        blocks = [dict(named(group)) for group in groups]
        shares = self._processes.agreed(self._checks.measure(blocks, evaluate))
        self.spent += 1.0 + sum(given or shares)
        # blocks that move together cost alike
        measured: tuple[float, ...] = shares if self._replay.starts else shares * len(blocks)
        return measured if given is None else given

    def estimate(
        self,
        step: Step,
        blocks: Sequence[InPlaceBlock],
        evaluate: Callable[[], Tensor],
        scratch_bytes: int | None,
    ) -> StepReport:
        """Estimate a step, in place or with virtual parameters in the weights' places.

        Args:
            step: the step.
            blocks: the blocks, which move weights in place.
            evaluate: returns the loss.
            scratch_bytes: memory for layerwise evaluation, in bytes; None: evaluate in place.
        """
        if self._records(step, scratch_bytes):
            last = [parameter for _, parameter in named(step.groups[-1])]
            step = replace(step, recording=partial(Recording, last, self._released))
        if scratch_bytes is None:
            report = self._estimate_in_place(step, blocks, evaluate)
        else:
            report = self._estimate_layerwise(step, evaluate, scratch_bytes)
        self.spent += self._checks.spent
        return report

    def _records(self, step: Step, scratch_bytes: int | None) -> bool:
        """Tell whether evaluations of a step's last block are recorded.

        Args:
            step: the step.
            scratch_bytes: memory for layerwise evaluation, in bytes, into which a copy of the block
                has to fit; None: evaluate in place.
        """
        if not step.takes_newton_step or not self._processes.alone:
            return False
        groups = [[parameter for _, parameter in named(group)] for group in step.groups]
        # what is gathered from shards is let go of after each evaluation
        if self._gathering or any(map(is_sharded, chain.from_iterable(groups))):
            return False
        return scratch_bytes is None or footprint(groups[-1]) <= scratch_bytes

    def _estimate_in_place(
        self, step: Step, blocks: Sequence[InPlaceBlock], evaluate: Callable[[], Tensor]
    ) -> StepReport:
        if not step.takes_newton_step:
            return self._checks.estimate(step, blocks, evaluate)
        # from a copy, as over a hundred moves there and back would leave their rounding
        last = InPlaceBlock(named(step.groups[-1]), snapshot=True, stream=step.stream)
        try:
            return self._checks.estimate(step, [*blocks[:-1], last], evaluate)
        finally:
            last.restore()

    def _estimate_layerwise(
        self, step: Step, evaluate: Callable[[], Tensor], scratch_bytes: int
    ) -> StepReport:
        layerwise = self._layerwise or Layerwise(self._model, scratch_bytes, step.stream)
        self._layerwise = layerwise

        def again() -> None:
            self.spent += step.every_share[0] if self._replay.keeps_frozen else 1.0
            self._replay.capture()

        def watched() -> Tensor:
            return layerwise.watched(evaluate, again)

        moving = step.estimator().perturbations
        # a block that rests can do without, once it is known which parameters stray
        groups = [
            named(group) if count or not layerwise.knows_strays else []
            for group, count in zip(step.groups, moving, strict=True)
        ]
        # moved in place, from a copy, as a recording reads the weights from where they are
        copied = groups[-1] if step.recording else []
        with layerwise.virtual_parameters(groups, copied) as virtual:
            return self._checks.estimate(step, virtual, watched)

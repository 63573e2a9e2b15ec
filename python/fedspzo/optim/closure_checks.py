"""Check what a closure does: that its loss repeats, and that the weights change it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from torch import Tensor, nn

from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.blocks.cost_shares import measure
from fedspzo.blocks.repeats import changing, repeats
from fedspzo.estimators.step_report import StepReport
from fedspzo.evaluation.in_place import MovableBlock

from .step import Step

WIDER = (4, 16, 64)
"""Multiples of eps at which the loss is evaluated when a step's losses are all equal."""

UNKNOWN = (
    "A batch that is learned already has such losses. If most steps have them, the loss changes in"
    " jumps, as a count does (pass a larger eps and a larger batch, docs/evaluation.md), or it does"
    " not depend on the weights that the optimizer moves"
)
"""What the warning of equal losses says where the loss is not evaluated further away."""


class ClosureChecks:
    """Checks the closure in the first step, and warns once of a step whose losses are all equal.

    Args:
        replay: the optimizer's activation replay.
        model: the model, or None.

    Attributes:
        done: the first step has been checked.
        told: the warning of equal losses has been given.
        spent: number of evaluations that the last `estimate` made beside the step's own.
    """

    def __init__(self, replay: ActivationReplay, model: nn.Module | None) -> None:
        self.done = self.told = False
        self._replay = replay
        self._model = model
        self._known: Tensor | None = None  # the loss at theta, as it was measured
        self.spent = 0

    def measure(
        self, blocks: Sequence[Mapping[str, Tensor]], evaluate: Callable[[], Tensor]
    ) -> tuple[float, ...]:
        """Return the cost shares, and check that the model works as it was split.

        Args:
            blocks: each block's parameters by name.
            evaluate: returns the loss, a scalar; with privacy one loss an example, (B,).

        Raises:
            RuntimeError: it does not, or the loss changes from call to call.
        """
        losses: list[Tensor] = []

        def noted() -> Tensor:
            losses.append(evaluate().sum())
            return losses[-1]

        first, *later = blocks
        later = later[: len(self._replay.starts)]
        shares = measure(self._replay, later, noted, first, self._model)
        self._known = losses[0]
        return shares

    def estimate(
        self, step: Step, blocks: Sequence[MovableBlock], evaluate: Callable[[], Tensor]
    ) -> StepReport:
        """Estimate a step, and check its losses.

        Args:
            step: the step.
            blocks: the blocks, which move the weights that the evaluation sees.
            evaluate: returns the loss, a scalar; with privacy one loss an example, (B,).

        Raises:
            RuntimeError: the loss changes from call to call.
        """
        self.spent = 0
        if self.done:
            report = step.estimate(blocks, evaluate)
        else:
            report = step.estimate(blocks, self._start_twice(step, evaluate))
            self.done, self._known = True, None
        if not self.told and step.privacy is None and is_flat(report):
            self.told = True
            why = self._look_wider(step, report, blocks, evaluate) if step.looks_wider else UNKNOWN
            warnings.warn(
                f"all {len(report.losses)} losses of step {report.step} are"
                f" {report.losses[0]:.6g}: no perturbation changed the loss, so the step moves"
                f" nothing. {why}",
                stacklevel=6,
            )
        return report

    def _start_twice(self, step: Step, evaluate: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return a function that evaluates the loss, and twice at the step's start.

        The second time is not needed if the first one gives the loss that was measured.
        """
        devices = {p.device for group in step.groups for p in group["params"]}
        points = step.estimator().points()
        start = next((number for number, point in enumerate(points) if not any(point)), 0)
        numbers = count()

        def checked() -> Tensor:
            loss = evaluate()
            if next(numbers) != start:
                return loss
            # a compiled model or a head that runs by rows may round otherwise than when measured
            if self._known is None or not repeats(self._known, loss.sum(), devices):
                self._replay.capture()
                again = evaluate()
                self.spent += 1
                if not repeats(loss, again, devices):
                    raise changing(loss, again)
            return loss

        return checked

    def _look_wider(
        self,
        step: Step,
        report: StepReport,
        blocks: Sequence[MovableBlock],
        evaluate: Callable[[], Tensor],
    ) -> str:
        """Move all blocks further until the loss changes, and say what that shows.

        Args:
            step: the step.
            report: its report; its losses are all equal.
            blocks: the blocks; they are left where the loss was last evaluated.
            evaluate: returns the loss, a scalar.
        """
        eps = [group["eps"] for group in step.groups]
        for factor in WIDER:
            for block, seeds, scale in zip(blocks, report.seeds, eps, strict=True):
                block.move(dict.fromkeys(seeds[:1], factor * scale))
            self._replay.run()
            loss = self._replay.evaluated(evaluate).item()
            self.spent += 1
            if math.isfinite(loss) and loss != report.losses[0]:
                wider = ", ".join(f"{factor * scale:.3g}" for scale in eps)
                return (
                    f"At {factor} times eps it changes, as a count or another loss in jumps does:"
                    f" pass eps=({wider}) and a larger batch (docs/evaluation.md)"
                )
        return (
            f"Nor does it change at {WIDER[-1]} times eps. Either it does not depend on the weights"
            " that the optimizer moves (the closure calls a copy of the model, uses outputs or"
            " weights that were computed before the step, or the model's parameters were replaced"
            " after the optimizer was built), or hardly any weights change it"
        )


def is_flat(report: StepReport) -> bool:
    """Tell whether all losses of a step are one finite value: no perturbation changed it."""
    first = report.losses[0]
    return math.isfinite(first) and len(report.losses) > 1 and set(report.losses) == {first}

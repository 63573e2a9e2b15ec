"""Check in the first step that the closure's loss repeats, and find losses that do not move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.blocks.repeats import changing, repeats
from fedspzo.estimators.step_report import StepReport
from fedspzo.evaluation.in_place import MovableBlock

WIDER = (4, 16, 64)
"""Multiples of eps at which the loss is looked at when a step's losses are all equal."""


class FirstEvaluation:
    """Evaluates the loss, the first time twice: it has to be the same at the same weights.

    Args:
        evaluate: returns the loss, a scalar; with privacy one loss an example, (B,).
        replay: an entered replay that is about to capture.
        devices: the devices that compute the loss.
        known: the loss at theta as it was measured, summed if there are several. If the first
            evaluation gives it too, a second one is not needed. Default: not known.

    Attributes:
        extra: number of evaluations made in addition, 0 or 1.
    """

    def __init__(
        self,
        evaluate: Callable[[], Tensor],
        replay: ActivationReplay,
        devices: Sequence[torch.device],
        known: Tensor | None = None,
    ) -> None:
        self._evaluate, self._replay = evaluate, replay
        self._devices, self._known = devices, known
        self._done = False
        self.extra = 0

    def __call__(self) -> Tensor:
        """Return the loss.

        Raises:
            RuntimeError: the second evaluation gave another loss than the first.
        """
        loss = self._evaluate()
        if self._done:
            return loss
        self._done = True
        # a compiled model or a head that runs by rows may round otherwise than when measured
        if self._known is None or not repeats(self._known, loss.sum(), self._devices):
            self._replay.capture()
            again = self._evaluate()
            self.extra = 1
            if not repeats(loss, again, self._devices):
                raise changing(loss, again)
        return loss


def is_flat(report: StepReport) -> bool:
    """Tell whether all losses of a step are one finite value: no perturbation changed it."""
    first = report.losses[0]
    return math.isfinite(first) and len(report.losses) > 1 and set(report.losses) == {first}


def look_wider(
    report: StepReport,
    blocks: Sequence[MovableBlock],
    eps: Sequence[float],
    replay: ActivationReplay,
    evaluate: Callable[[], Tensor],
) -> tuple[str, int]:
    """Find out why a step is flat: move all blocks further, until the loss changes.

    Args:
        report: the flat step.
        blocks: the blocks; they are left where the loss was last evaluated.
        eps: each block's perturbation scale.
        replay: an entered replay. It replays nothing here.
        evaluate: returns the loss, a scalar.

    Returns:
        A warning that says what was found and what to do, and the number of evaluations made.
    """
    start = (
        f"all {len(report.losses)} losses of step {report.step} are {report.losses[0]:.6g}: no"
        " perturbation changed the loss, so the step moves nothing."
    )
    for number, factor in enumerate(WIDER, 1):
        for block, seeds, scale in zip(blocks, report.seeds, eps, strict=True):
            block.move(dict.fromkeys(seeds[:1], factor * scale))
        replay.run()
        loss = replay.evaluated(evaluate).item()
        if math.isfinite(loss) and loss != report.losses[0]:
            wider = ", ".join(f"{factor * scale:.3g}" for scale in eps)
            return (
                f"{start} At {factor} times eps it changes, as a count or another loss in jumps"
                f" does: pass eps=({wider}) and a larger batch (docs/evaluation.md)",
                number,
            )
    return (
        f"{start} Nor does it change at {WIDER[-1]} times eps. Either it does not depend on the"
        " weights that the optimizer moves (the closure calls a copy of the model, or uses outputs"
        " or weights that were computed before the step), or it is at a value that hardly any"
        " weights change",
        len(WIDER),
    )

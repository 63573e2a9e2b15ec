"""The trust ratio: a step of `lr="auto"` is held to what it promises (see `auto_rate`).

It is the change of the batch's loss over what the projected gradients predict: 1 for a tiny step,
and about 0.5 for the best one along its way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .auto_rate import HALVE, AutoRate, Terms
from .displacement import Movable
from .estimator import to_float32
from .step_report import StepReport, terms_of

DOUBTED = 0.1
"""The trust ratio below which a step is halved."""
HALVINGS = 32
"""How often, before it is not made at all."""
RESOLVED = 4
"""Units in the last place of the loss: of a smaller promise nothing can be seen."""


def predicted(
    gradients: Sequence[Sequence[float]], coefficients: Sequence[Sequence[float]]
) -> float:
    """The change of loss that projected gradients promise for an update; at most 0.

    The derivative along sum_k c_k z_k is sum_k c_k g_k.
    """
    return sum(
        c * g
        for block, updates in zip(gradients, coefficients, strict=True)
        for g, c in zip(block, updates, strict=True)
    )


def judge(
    auto: AutoRate,
    groups: Sequence[dict[str, Any]],
    stands: Sequence[Movable],
    report: StepReport,
    evaluate: Callable[[], Tensor],
    cost: float,
) -> StepReport:
    """Hold a step's update to what it promises, where that is due, before it is made.

    Args:
        auto: what is known so far; it takes note of the step.
        groups: the param groups, whose `lr` changes.
        stands: what moves the evaluation's weights, a block.
        report: the step as its gradients want it.
        evaluate: the batch's loss where the stands are.
        cost: of an evaluation, in full forward passes.

    Returns:
        The step as it is to be made.
    """
    if auto.diverged(report.loss) and auto.recent:
        auto.scale(groups, HALVE)
        return _back(auto.take_back(), report)
    if auto.due() and predicted(report.gradients, report.coefficients) < 0:

        def look(step: StepReport) -> float | None:
            for stand, block in zip(stands, _terms(step), strict=True):
                stand.move(block)
            promise = predicted(step.gradients, step.coefficients)
            value = evaluate()
            unit = torch.finfo(value.dtype).eps * abs(step.loss)
            seen = abs(promise) > RESOLVED * unit
            return (value.item() - step.loss) / promise if seen else None

        report = _halved_until_trusted(auto, groups, report, look, cost)
    if report.undone is None:
        auto.recent.append(_terms(report))
    return report


def _halved_until_trusted(
    auto: AutoRate,
    groups: Sequence[dict[str, Any]],
    report: StepReport,
    look: Callable[[StepReport], float | None],
    cost: float,
) -> StepReport:
    """The step, or its half, or a half of that, whichever first keeps its promise; or none.

    `look` gives a step's trust ratio, or None if the loss cannot show it, for `cost` passes.
    """
    for _ in range(HALVINGS):
        ratio = look(report)
        report = replace(report, ratio=ratio, forwards=report.forwards + cost)
        if ratio is None or ratio >= DOUBTED:  # not where it is not a number
            return report
        auto.scale(groups, HALVE)
        report = replace(
            report,
            coefficients=tuple(
                to_float32([HALVE * c for c in block]) for block in report.coefficients
            ),
            lr=tuple(HALVE * rate for rate in report.lr),
        )
    zeros = tuple((0.0,) * len(block) for block in report.coefficients)
    return replace(report, coefficients=zeros, undone="step")


def _terms(report: StepReport) -> Terms:
    return tuple(map(terms_of, report.seeds, report.coefficients))


def _back(terms: Terms, report: StepReport) -> StepReport:
    """The step whose update is `terms`, which undo others."""
    return replace(
        report,
        seeds=tuple(tuple(block) for block in terms),
        gradients=tuple((0.0,) * len(block) for block in terms),
        coefficients=tuple(tuple(block.values()) for block in terms),
        undone="steps",
    )

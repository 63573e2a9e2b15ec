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

from fedspzo.estimators.float32 import to_float32
from fedspzo.estimators.step_report import StepReport, terms_of
from fedspzo.evaluation.in_place import MovableBlock

from .auto_rate import HALVE, AutoRate
from .loss_monitor import Terms

DOUBTED = 0.1
"""The trust ratio below which a step is halved."""
HALVINGS = 32
"""How often, before it is not made at all."""
RESOLVED = 4
"""Units in the last place of the loss: of a smaller promise nothing can be seen."""

AVERAGED = 1 / 8
"""What is left of a low precision's unit in a loss: many values are rounded, it is their mean."""
LOST = 4
"""Steps in a row without finite losses after which the last ones are taken back."""


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
    stands: Sequence[MovableBlock],
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
        evaluate: the batch's loss where the blocks are.
        cost: of an evaluation, in full forward passes.

    Returns:
        The step as it is to be made.
    """
    auto.lost = 0
    if auto.diverged(report.loss) and auto.recent:
        return _back(auto, groups, report)
    if auto.due() and predicted(report.gradients, report.coefficients) < 0:

        def look(step: StepReport) -> float | None:
            for stand, block in zip(stands, _terms(step), strict=True):
                stand.move(block)
            promise = predicted(step.gradients, step.coefficients)
            value = evaluate()
            seen = abs(promise) > RESOLVED * resolution(value, groups) * abs(step.loss)
            return (value.item() - step.loss) / promise if seen else None

        report = _halved_until_trusted(auto, groups, report, look, cost)
    if report.undone is None:
        auto.recent.append(_terms(report))
    return report


def resolution(value: Tensor, groups: Sequence[dict[str, Any]]) -> float:
    """How far a loss is off, relatively: by its own dtype, and by what its weights' makes of it."""
    dtypes = {parameter.dtype for group in groups for parameter in group["params"]}
    low = [AVERAGED * torch.finfo(dtype).eps for dtype in dtypes - {torch.float32}]
    return max([torch.finfo(value.dtype).eps, *low])


def lost(auto: AutoRate, groups: Sequence[dict[str, Any]], report: StepReport) -> StepReport:
    """What is made of a step whose losses are not finite: nothing, or after some the way back.

    A batch may have such losses. Where one after another has, it is the weights.
    """
    auto.lost += 1
    if auto.lost < LOST or not auto.recent:
        return report
    auto.lost = 0
    return replace(_back(auto, groups, report), skipped=False)


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


def _back(auto: AutoRate, groups: Sequence[dict[str, Any]], report: StepReport) -> StepReport:
    """The step that takes the last ones back; from now on the rates are half."""
    auto.scale(groups, HALVE)
    terms = auto.take_back()
    return replace(
        report,
        seeds=tuple(tuple(block) for block in terms),
        gradients=tuple((0.0,) * len(block) for block in terms),
        coefficients=tuple(tuple(block.values()) for block in terms),
        undone="steps",
    )

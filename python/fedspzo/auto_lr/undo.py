"""Take steps back by the negative of their terms. A journal keeps these like any other terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedspzo.estimators.step_report import StepReport, terms_of

Terms = tuple[dict[int, float], ...]
"""For each block, seed to coefficient."""


def terms(report: StepReport) -> Terms:
    """Return the terms that a step adds to the weights."""
    return tuple(map(terms_of, report.seeds, report.coefficients))


def undoing(report: StepReport, steps: Sequence[Terms]) -> StepReport:
    """Return the report of a step that takes others back instead of making its own.

    Args:
        report: the step as its gradients want it.
        steps: the terms of the steps to take back, at least one.
    """
    undone: Terms = tuple({} for _ in steps[0])
    for step in steps:
        for total, block in zip(undone, step, strict=True):
            for seed, coefficient in block.items():
                total[seed] = -coefficient
    return replace(
        report,
        seeds=tuple(tuple(block) for block in undone),
        gradients=tuple((0.0,) * len(block) for block in undone),
        coefficients=tuple(tuple(block.values()) for block in undone),
        undone=True,
    )

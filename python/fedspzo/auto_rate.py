"""A learning rate that finds itself, from losses alone, and backs off when training diverges.

`SPZO(lr="auto")`. To find it, the rate doubles step by step while a step does what its gradient
promises: the *trust ratio*, the change of the batch's loss over what the projected gradients
predict, is 1 for a tiny step and about 0.5 for the best one along its way. A step of a few percent
of a block's weights ends the search too: its noise adds up, which one batch's ratio does not show.

Every few steps after that the ratio is looked at again, and the rate falls where it is low; a step
that raises its own batch's loss is not made. Where the smoothed loss has left its best value
behind, the steps since then are taken back, by the negative of their terms, and the rate is halved.
Everything follows from losses, so it repeats; the terms that take steps back are terms like others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from .displacement import Movable
from .step_report import StepReport, terms_of

START = 1e-4
GROW, SHRINK, HALVE = 2.0, 0.8, 0.5
TRUSTED, DOUBTED, REJECTED = 0.4, 0.1, -0.5
"""Trust ratios: above the first a rate in search grows; below the others it shrinks, is undone."""
LARGEST, LARGEST_LAST = 0.04, 0.25
"""The search's largest step: the norm of a block's update over that of its weights; and that of the
last of several blocks, where a new head is small at first."""
EVERY = 4
"""Steps between looks once the rate is found."""
SMOOTHING = 0.75
RISE, SLACK = 1.5, 0.1
"""Diverged: the smoothed loss is above RISE times its best plus SLACK times the first loss."""
MEMORY = 64
"""Steps that can be taken back."""

Terms = tuple[dict[int, float], ...]
"""For each block, seed to coefficient."""


@dataclass
class AutoRate:
    """What `lr="auto"` remembers. Plain values, which a state_dict holds.

    Attributes:
        searching: the rate still doubles.
        steps: steps seen.
        first: the first loss.
        smoothed, best: the smoothed loss, now and at its best.
        recent: the terms of the steps since the best, oldest first.
    """

    searching: bool = True
    steps: int = 0
    first: float | None = None
    smoothed: float = 0.0
    best: float = 0.0
    recent: list[Terms] = field(default_factory=list)

    def diverged(self, loss: float) -> bool:
        """Take note of a step's loss; whether to take back what came since the best one."""
        if self.first is None:
            self.first = self.smoothed = self.best = loss
        self.smoothed += (1 - SMOOTHING) * (loss - self.smoothed)
        if self.smoothed <= self.best or len(self.recent) > MEMORY:
            self.best = self.smoothed
            self.recent.clear()
        return self.smoothed > RISE * self.best + SLACK * abs(self.first) and bool(self.recent)

    def take_back(self) -> Terms:
        """The terms that undo all steps since the best loss; the search is over."""
        undone: Terms = tuple({} for _ in self.recent[0])
        for step in self.recent:
            for total, terms in zip(undone, step, strict=True):
                for seed, coefficient in terms.items():
                    total[seed] = -coefficient
        self.recent.clear()
        self.smoothed, self.searching = self.best, False
        return undone

    def due(self) -> bool:
        """Whether the step to come is to be looked at."""
        self.steps += 1
        return self.searching or self.steps % EVERY == 0

    def factor(self, ratio: float, size: float) -> float:
        """What a step's trust ratio makes of the rate; below `REJECTED` the step is not made.

        Args:
            ratio: the batch's change of loss over the predicted one.
            size: the step's, over the largest that is allowed; looked at while searching.
        """
        if not ratio >= DOUBTED:  # also where it is not a number
            self.searching = False
            return SHRINK if ratio >= REJECTED else HALVE
        self.searching = self.searching and ratio > TRUSTED and GROW * size <= 1
        return GROW if self.searching else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a state_dict."""
        return asdict(self)


def relative_size(groups: Sequence[Sequence[Tensor]], terms: Terms) -> float:
    """The norm of a block's update over that of its weights and its bound, the largest of all.

    Directions are nearly orthogonal and of norm sqrt(d), so sum_k c_k z_k has |c| sqrt(d). A block
    of zeros alone does not count.
    """
    sizes = [0.0]
    for block, (tensors, update) in enumerate(zip(groups, terms, strict=True)):
        bound = LARGEST_LAST if 0 < block == len(groups) - 1 else LARGEST
        weights = math.sqrt(sum(float(t.float().square().sum()) for t in tensors))
        numel = sum(t.numel() for t in tensors)
        if weights:
            sizes.append(math.hypot(*update.values()) * math.sqrt(numel) / weights / bound)
    return max(sizes)


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
) -> StepReport:
    """Hold a step's update to what it promises, where that is due, before it is made.

    Args:
        auto: what is known so far; it takes note of the step.
        groups: the param groups, whose `lr` changes.
        stands: what moves the evaluation's weights, a block.
        report: the step as its gradients want it.
        evaluate: the batch's loss, in full, where the stands are.

    Returns:
        The step as it is to be made.
    """
    if auto.diverged(report.loss):
        _scale(groups, HALVE)
        return _back(auto.take_back(), report)
    terms = tuple(map(terms_of, report.seeds, report.coefficients))
    promise = predicted(report.gradients, report.coefficients)
    if auto.due() and promise < 0:
        for stand, block in zip(stands, terms, strict=True):
            stand.move(block)
        ratio = (evaluate().item() - report.loss) / promise
        weights = [group["params"] for group in groups]
        size = relative_size(weights, terms) if auto.searching else 0.0
        _scale(groups, auto.factor(ratio, size))
        report = replace(report, ratio=ratio, forwards=report.forwards + 1)
        if not ratio >= REJECTED:  # also where it is not a number
            zeros = tuple((0.0,) * len(block) for block in report.coefficients)
            return replace(report, coefficients=zeros, undone="step")
    auto.recent.append(terms)
    return report


def _back(terms: Terms, report: StepReport) -> StepReport:
    """The step whose update is `terms`, which undo others."""
    return replace(
        report,
        seeds=tuple(tuple(block) for block in terms),
        gradients=tuple((0.0,) * len(block) for block in terms),
        coefficients=tuple(tuple(block.values()) for block in terms),
        undone="steps",
    )


def _scale(groups: Sequence[dict[str, Any]], factor: float) -> None:
    for group in groups:
        group["lr"] *= factor

"""Learning rates that find themselves, from losses and weights alone, and back off.

`SPZO(lr="auto")`. The first steps set a rate for each block (`AutoRate.learn`), as large as three
bounds let it be; their constants were chosen on the problems of `benchmarks/compute_to_target.py`:

* size: a step moves a block by a few percent of its weights at most, as its noise adds up. The
  update of P directions has the norm lr |g| sqrt(d / P).
* worth: a step that moves a block by the share r of its weights has to promise a fall of the loss
  by r^2 / WORTH; it promises lr |g|^2.
* curvature, of the blocks whose evaluations are cheap: the rate is a small part of the one that is
  best for a single step, P / trace(H) where noise dominates.

Every few steps the *trust ratio* is looked at: the change of the batch's loss over what the
projected gradients predict, 1 for a tiny step and about 0.5 for the best one along its way. A step
that keeps too little of its promise is halved until it keeps it, and the rates with it. Where the
smoothed loss has left its best value behind, the steps since then are taken back, by the negative
of their terms, and the rates are halved. Everything follows from losses and weights, so it repeats;
the terms that take steps back are terms like others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from .displacement import Movable
from .estimator import to_float32
from .step_report import StepReport, terms_of

START = 1e-4
"""A block's rate where nothing bounds it."""
LEARN = 8
"""Steps that set the rates, each by the mean over the steps so far."""
LARGEST, LARGEST_LAST = 0.03, 0.25
"""The largest step: the norm of a block's update over that of its weights; and that of the last of
several blocks, where a new head is small at first, and which no worth bounds."""
WORTH = 0.1
"""In 1 / nats; see above."""
STIFF = 1 / 32
"""The part of the rate that is best for a single step."""
EVERY = 8
"""Steps between looks at the trust ratio."""
DOUBTED = 0.1
"""The trust ratio below which a step is halved."""
HALVE, HALVINGS = 0.5, 32
"""What a step is halved by, and how often before it is not made at all."""
SMOOTHING = 0.75
RISE, SLACK = 1.5, 0.5
"""Diverged: the smoothed loss is above RISE times its best plus SLACK times the first ones."""
MEMORY = 64
"""Steps that can be taken back."""

Terms = tuple[dict[int, float], ...]
"""For each block, seed to coefficient."""


@dataclass
class AutoRate:
    """What `lr="auto"` remembers. Plain values, which a state_dict holds.

    Attributes:
        steps: steps seen.
        learned: steps that the rates follow from, at most `LEARN`.
        factor: what looks and divergence have made of the rates that the bounds allow.
        sizes: each block's root mean square weight, at the start.
        squares: the sum over the learned steps of the mean squared projected gradient, a block.
        traces: the sum of the estimated traces of a block's Hessian; None where not known.
        first: the mean loss of the first `LEARN` steps.
        smoothed, best: the smoothed loss, now and at its best.
        recent: the terms of the steps since the best, oldest first.
    """

    steps: int = 0
    learned: int = 0
    factor: float = 1.0
    sizes: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    traces: list[float | None] = field(default_factory=list)
    first: float = 0.0
    smoothed: float = 0.0
    best: float = 0.0
    recent: list[Terms] = field(default_factory=list)

    @property
    def learning(self) -> bool:
        """Whether the step to come helps to set the rates."""
        return self.learned < LEARN

    def learn(
        self,
        groups: Sequence[dict[str, Any]],
        gradients: Sequence[Sequence[float]],
        curvatures: Sequence[float | None],
    ) -> None:
        """Set the rates by what a step has shown, while there is to learn.

        Args:
            groups: the param groups, whose `lr` is set.
            gradients: a block, its directions' projected gradients.
            curvatures: a block, its Hessian's trace as the step's losses show it, or None.
        """
        squares = [_mean_square(block) for block in gradients]
        if not self.learning or not all(map(math.isfinite, squares)):
            return
        if not self.sizes:
            self.sizes = [root_mean_square(group["params"]) for group in groups]
            self.squares, self.traces = [0.0] * len(groups), [0.0] * len(groups)
        self.learned += 1
        for block, (group, square, trace) in enumerate(
            zip(groups, squares, curvatures, strict=True)
        ):
            self.squares[block] += square
            known = self.traces[block]
            self.traces[block] = None if trace is None or known is None else known + trace
            last = 0 < block == len(groups) - 1
            group["lr"] = self.factor * self._bound(block, len(gradients[block]), last=last)

    def _bound(self, block: int, count: int, *, last: bool) -> float:
        """The largest rate that is allowed for a block of `count` directions."""
        size, square = self.sizes[block], self.squares[block] / self.learned
        trace = (self.traces[block] or 0.0) / self.learned
        bounds = []
        if size and square:
            largest = LARGEST_LAST if last else LARGEST
            bounds.append(largest * size * math.sqrt(count / square))
        if size and not last:
            bounds.append(WORTH * size**2 * count)
        if trace > 0:
            bounds.append(STIFF * count / trace)
        return min((bound for bound in bounds if bound), default=START)

    def scale(self, groups: Sequence[dict[str, Any]], factor: float) -> None:
        """Multiply the rates, those still to be learned too."""
        self.factor *= factor
        for group in groups:
            group["lr"] *= factor

    def diverged(self, loss: float) -> bool:
        """Take note of a step's loss; whether to take back what came since the best one."""
        if self.steps == 0:
            self.smoothed = self.best = loss
        self.steps += 1
        if self.steps <= LEARN:  # one batch's loss alone may be far off
            self.first += (loss - self.first) / self.steps
        self.smoothed += (1 - SMOOTHING) * (loss - self.smoothed)
        if self.smoothed <= self.best or len(self.recent) > MEMORY:
            self.best = self.smoothed
            self.recent.clear()
        return self.smoothed > RISE * self.best + SLACK * abs(self.first) and bool(self.recent)

    def take_back(self) -> Terms:
        """The terms that undo all steps since the best loss."""
        undone: Terms = tuple({} for _ in self.recent[0])
        for step in self.recent:
            for total, terms in zip(undone, step, strict=True):
                for seed, coefficient in terms.items():
                    total[seed] = -coefficient
        self.recent.clear()
        self.smoothed = self.best
        return undone

    def due(self) -> bool:
        """Whether the step at hand is to be looked at: the first is, and some."""
        return self.steps % EVERY == 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a state_dict."""
        return asdict(self)


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """Of all elements."""
    total = sum(float(tensor.float().square().sum()) for tensor in tensors)
    return math.sqrt(total / max(1, sum(tensor.numel() for tensor in tensors)))


def _mean_square(values: Sequence[float]) -> float:
    return sum(value * value for value in values) / max(1, len(values))


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
        auto.scale(groups, HALVE)
        return _back(auto.take_back(), report)
    if auto.due() and predicted(report.gradients, report.coefficients) < 0:

        def look(step: StepReport) -> float:
            for stand, block in zip(stands, _terms(step), strict=True):
                stand.move(block)
            promise = predicted(step.gradients, step.coefficients)
            return (evaluate().item() - step.loss) / promise if promise else 0.0

        report = _halved_until_trusted(auto, groups, report, look)
    if report.undone is None:
        auto.recent.append(_terms(report))
    return report


def _halved_until_trusted(
    auto: AutoRate,
    groups: Sequence[dict[str, Any]],
    report: StepReport,
    look: Callable[[StepReport], float],
) -> StepReport:
    """The step, or its half, or a half of that, whichever first keeps its promise; or none.

    `look` gives a step's trust ratio.
    """
    for _ in range(HALVINGS):
        ratio = look(report)
        report = replace(report, ratio=ratio, forwards=report.forwards + 1)
        if ratio >= DOUBTED:  # not where it is not a number
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

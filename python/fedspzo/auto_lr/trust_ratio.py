"""The trust ratio: the change of the batch's loss over the change that a step promises.

The projected gradients make the promise. The ratio is 1 for a tiny step, and about 0.5 for the best
step along its direction (trust-region methods: Conn, Gould and Toint, 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedspzo.estimators.float32 import to_float32
from fedspzo.estimators.step_report import StepReport
from fedspzo.evaluation.in_place import MovableBlock

from .rates import HALVE
from .undo import terms

DOUBTED = 0.1
"""Trust ratio below which a step is halved."""
HALVINGS = 32
"""Number of halvings after which a step is not made at all."""
RESOLVED = 4
"""Smallest promise for which the loss shows the ratio, in units in the last place of the loss."""
LOW_PRECISION = 1 / 8
"""Smallest relative difference of losses that a low-precision model can show, in units of its
weights' dtype. It is below 1, as a loss is a mean over many rounded values."""


@dataclass(frozen=True)
class Trial:
    """Tries a step out before it is made.

    Attributes:
        blocks: the blocks, which move the weights that the evaluation sees.
        evaluate: returns the batch's loss at the weights as the blocks were last moved, a scalar.
        cost: cost of an evaluation, in full forward passes.
        dtypes: dtypes of the weights.
    """

    blocks: Sequence[MovableBlock]
    evaluate: Callable[[], Tensor]
    cost: float
    dtypes: Iterable[torch.dtype]

    def ratio(self, step: StepReport) -> float | None:
        """Return the trust ratio of a step; None if the loss cannot show it."""
        for block, target in zip(self.blocks, terms(step), strict=True):
            block.move(target)
        promise = predicted(step)
        loss = self.evaluate()
        if not abs(promise) > RESOLVED * resolution(loss.dtype, self.dtypes) * abs(step.loss):
            return None
        return (loss.item() - step.loss) / promise


def predicted(step: StepReport) -> float:
    """Return the change of the loss that a step's projected gradients promise; at most 0.

    The derivative along sum_k c_k z_k is sum_k c_k g_k.
    """
    return sum(
        c * g
        for block, updates in zip(step.gradients, step.coefficients, strict=True)
        for g, c in zip(block, updates, strict=True)
    )


def resolution(loss: torch.dtype, weights: Iterable[torch.dtype]) -> float:
    """Return the smallest relative difference that a loss can show.

    Args:
        loss: dtype of the loss.
        weights: dtypes of the model's weights.
    """
    low = [LOW_PRECISION * torch.finfo(dtype).eps for dtype in weights if dtype != torch.float32]
    return max([torch.finfo(loss).eps, *low])


def halve_until_trusted(step: StepReport, trial: Trial) -> tuple[StepReport, float]:
    """Halve a step until it keeps its promise.

    Args:
        step: the step as its gradients want it.
        trial: tries it out.

    Returns:
        The step to make, and the factor by which all rates are to be multiplied. If no halving
        keeps its promise, the step's coefficients are 0.
    """
    factor = 1.0
    for _ in range(HALVINGS):
        ratio = trial.ratio(step)
        step = replace(step, ratio=ratio, forwards=step.forwards + trial.cost)
        if ratio is None or ratio >= DOUBTED:  # a NaN is no ratio to trust
            return step, factor
        factor *= HALVE
        step = replace(
            step,
            coefficients=tuple(
                to_float32([HALVE * c for c in block]) for block in step.coefficients
            ),
            lr=tuple(HALVE * rate for rate in step.lr),
        )
    zeros = tuple((0.0,) * len(block) for block in step.coefficients)
    return replace(step, coefficients=zeros, undone="step"), factor

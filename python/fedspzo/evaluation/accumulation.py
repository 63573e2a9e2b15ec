"""Accumulate the losses of micro-batches, each with the weight that it has in the whole batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from .closures import Closure, read_losses


def accumulate(closures: Sequence[Closure], weights: Sequence[float | Tensor]) -> Closure:
    """Return a closure for the loss of a batch that is evaluated in micro-batches.

    The loss is sum_i w_i l_i / sum_i w_i. If every loss l_i is a mean over w_i terms, this is the
    mean over all terms, as one large batch would give it. The plain mean of the l_i is another
    loss wherever the micro-batches differ in their numbers of terms.

        counts = [(batch["labels"][:, 1:] != -100).sum() for batch in micro_batches]
        closures = [lambda batch=batch: model(**batch).loss for batch in micro_batches]
        optimizer.step(fedspzo.accumulate(closures, counts))

    Args:
        closures: one a micro-batch; each returns the mean loss of its micro-batch, a scalar.
        weights: for each micro-batch the number of terms in its mean: the labels that are not
            ignored, for a causal language model without each sequence's first one, which nothing
            predicts; or the examples. A micro-batch of weight 0 is not evaluated.

    Returns:
        A closure for `SPZO.step`. It calls the closures one by one, in this order. It sums in
        float64, and returns the losses' own dtype.

    Raises:
        ValueError: there is not one weight for each closure, or a weight is negative or not finite,
            or all are 0.
        TypeError: a closure cannot be called.
    """
    for number, closure in enumerate(closures):
        if not callable(closure):
            raise TypeError(
                f"closures[{number}] is a {type(closure).__name__}; pass functions that return a"
                " loss, such as lambda batch=batch: model(**batch).loss"
            )
    if len(closures) != len(weights):
        raise ValueError(
            f"there are {len(closures)} closures and {len(weights)} weights; pass one weight a"
            " closure"
        )
    values = [float(weight) for weight in weights]
    for number, value in enumerate(values):
        if not 0 <= value < math.inf:
            raise ValueError(
                f"weights[{number}] is {value}; pass the micro-batch's number of labels"
            )
    total = sum(values)
    if not total:
        raise ValueError(f"weights are {values}; at least one micro-batch needs labels")
    return weighted_sum(closures, [value / total for value in values])


def weighted_sum(closures: Sequence[Closure], shares: Sequence[float]) -> Closure:
    """Return a closure for the sum of `shares[i]` times the loss of `closures[i]`.

    It sums in float64, and returns the losses' own dtype.

    Args:
        closures: one a micro-batch; each returns a loss, a scalar.
        shares: what each loss is multiplied by. A closure whose share is 0 is not called.
    """
    parts = [(closure, share) for closure, share in zip(closures, shares, strict=True) if share]

    def summed() -> Tensor:
        losses = [read_losses(closure(), single=True) for closure, _ in parts]
        dtype = losses[0].dtype
        for loss in losses[1:]:
            dtype = torch.promote_types(dtype, loss.dtype)
        total = sum(share * loss.double() for (_, share), loss in zip(parts, losses, strict=True))
        return torch.as_tensor(total).to(dtype)

    return summed


def refuse_accelerates() -> None:
    """Refuse accelerate's gradient accumulation, which has no gradients to accumulate here.

    It skips `step` for all micro-batches but the last one, whose loss alone would be trained on.

    Raises:
        RuntimeError: an `Accelerator` of this process accumulates over more than one step.
    """
    state = sys.modules.get("accelerate.state")
    if state is None:
        return
    shared = getattr(state.GradientState, "_shared_state", {})
    steps = shared.get("plugin_kwargs", {}).get("num_steps", 1)
    if steps > 1:
        raise RuntimeError(
            f"the Accelerator has gradient_accumulation_steps={steps}, but SPZO has no gradients"
            " that accumulate, and accelerate skips its step for all but the last micro-batch;"
            " leave gradient_accumulation_steps at 1, and pass all micro-batches to one step:"
            " optimizer.step(fedspzo.accumulate(closures, weights))"
        )

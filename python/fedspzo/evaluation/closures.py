"""Read the losses that a closure returns, and make them private gradients where that is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fedspzo.estimators import Estimator
from fedspzo.estimators.points import Point
from fedspzo.privacy import Mechanism

Closure = Callable[[], Tensor | float]

_REMEDY = (
    "remove it. With Lightning set automatic_optimization = False, and call"
    " self.optimizers().step(closure) in training_step (examples/lightning)"
)


def private_gradients(
    privacy: Mechanism, estimator: Estimator, losses: Mapping[Point, Tensor], eps: Sequence[float]
) -> tuple[list[float], ...]:
    """Return the private projected gradients, block by block.

    Args:
        privacy: clips, sums and blurs the examples' gradients.
        estimator: its formulas give each example's gradients.
        losses: at each point, the examples' losses, (B,).
        eps: each block's perturbation scale.
    """
    # the estimator's formulas hold for tensors as they do for numbers
    exact: Any = {point: loss.double() for point, loss in losses.items()}
    by_block: Any = estimator.gradients(exact, eps)
    released = iter(privacy.release(torch.stack([g for block in by_block for g in block], dim=1)))
    return tuple([next(released) for _ in block] for block in by_block)


@contextmanager
def backward_refused(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Explain the error of a closure that calls `loss.backward()`, and raise one where none came.

    A closure may turn gradients on for itself, as those of Lightning's automatic optimization do.

    Args:
        parameters: the trained parameters. They get their `grad` back.

    Raises:
        RuntimeError: the closure has computed gradients.
    """
    before = [(parameter, parameter.grad) for parameter in parameters]
    try:
        yield
    except RuntimeError as error:
        if "does not require grad" in str(error):
            error.add_note(f"SPZO's closure returns the loss and calls no backward(): {_REMEDY}")
        raise
    computed = [parameter for parameter, grad in before if parameter.grad is not grad]
    if any(parameter.grad is not None for parameter in computed):
        for parameter, grad in before:
            parameter.grad = grad
        raise RuntimeError(
            f"the closure called backward(), but SPZO's closure only returns the loss: {_REMEDY}"
        )


def read_losses(loss: object, *, single: bool) -> Tensor:
    """Return the closure's loss as a new tensor on its device, without waiting for the device.

    Args:
        loss: the value that the closure returned.
        single: it has to be one loss; else one loss an example, (B,).

    Raises:
        TypeError: it is neither a tensor nor a number.
        ValueError: its shape is another one.
    """
    if not isinstance(loss, Tensor | int | float):
        raise TypeError(
            f"the closure returned a {type(loss).__name__}; return the loss, e.g."
            " lambda: model(**batch).loss"
        )
    if isinstance(loss, Tensor):
        value = loss.detach().clone()
        value = value if value.is_floating_point() else value.float()  # a count of errors
    else:  # not in torch's default dtype, which may be a low one
        value = torch.tensor(loss, dtype=torch.float64)
    if not single:
        if value.dim() != 1:
            raise ValueError(
                f"the closure returned losses of shape {tuple(value.shape)}; with privacy return"
                " one an example, (B,)"
            )
        return value
    if value.numel() != 1:
        raise ValueError(
            f"the closure returned a loss of shape {tuple(value.shape)}; return its mean or sum"
        )
    return value.reshape(())

"""The trust ratio: the change of the batch's loss over the change that a step promises.

The projected gradients make the promise. The ratio is 1 for a tiny step, and about 0.5 for the best
step along its direction (trust-region methods: Conn, Gould and Toint, 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

DOUBTED = 0.1
"""Trust ratio below which a step is halved."""
HALVINGS = 32
"""Number of halvings after which a step is not made at all."""


def trusted_share(
    gradients: Sequence[float],
    step: Sequence[float],
    loss: float,
    loss_after: Callable[[Sequence[float]], float],
) -> tuple[float, float | None]:
    """Halve a step until it keeps its promise.

    A Newton step needs this. Where a model is confident and wrong, its loss has next to no
    curvature, and such a step overshoots.

    Args:
        gradients: the projected gradients, (P,).
        step: what is to be added along each direction, (P,).
        loss: the batch's loss before the step.
        loss_after: returns the batch's loss after a step, (P,), instead.

    Returns:
        The share of the step that keeps the promise, 0 if none does; and the trust ratio of the
        last step tried, None if the batch's loss does not change by it.
    """
    share = 1.0
    for _ in range(HALVINGS):
        tried = [share * c for c in step]
        # the derivative of the loss along sum_k c_k z_k is sum_k c_k g_k
        promise = sum(c * g for c, g in zip(tried, gradients, strict=True))
        change = promise and loss_after(tried) - loss
        if change == 0:
            return share, None
        ratio = change / promise
        if ratio >= DOUBTED:  # a NaN is no ratio to trust
            return share, ratio
        share /= 2
    return 0.0, ratio

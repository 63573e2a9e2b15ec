"""Round numbers to float32, in which they travel, are journaled and are added by the kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def to_float32(values: Sequence[float]) -> tuple[float, ...]:
    """Return the nearest float32 values as Python floats; beyond float32's range, infinities."""
    return tuple(array("f", values))


def coefficients(gradients: Sequence[float], lr: float) -> tuple[float, ...]:
    """Return the coefficient of each of a block's P directions in its update: -lr g / P, float32.

    Args:
        gradients: the projected gradients g of the P directions.
        lr: the block's learning rate.
    """
    return to_float32([-lr * g / len(gradients) for g in gradients])

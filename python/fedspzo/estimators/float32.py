"""Numbers as float32 holds them: what travels, what is journaled and what the kernels add."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def to_float32(values: Sequence[float]) -> tuple[float, ...]:
    """Return the nearest float32 values as Python floats; infinite beyond float32's range."""
    return tuple(array("f", values))


def coefficients(gradients: Sequence[float], lr: float) -> tuple[float, ...]:
    """Return what a block's update adds along each of its P directions: `-lr g / P`, in float32.

    Args:
        gradients: the projected gradients g of the P directions.
        lr: the block's learning rate.
    """
    return to_float32([-lr * g / len(gradients) for g in gradients])

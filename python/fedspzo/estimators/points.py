"""The points at which a step evaluates the loss: each block moved along some of its directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Offset = tuple[tuple[int, float], ...]
"""A block's move: pairs of a direction's number and the distance along it, in units of eps."""
Point = tuple[Offset, ...]
"""One offset for each block."""
Losses = Mapping[Point, float]
"""The loss at each point."""

HERE: Offset = ()
"""The offset of a block that stays at its weights."""


def along(direction: int, sign: int = +1) -> Offset:
    """Return the offset of a block that is moved along one direction."""
    return ((direction, sign),)


def combination(weights: Sequence[float], also: int | None = None) -> Offset:
    """Return the offset along the sum of all directions, each times its weight.

    Args:
        weights: one weight for each direction of the block, in units of eps.
        also: the direction along which the block is moved by 1 more. Default: none.
    """
    offset = list(enumerate(weights))
    if also is not None:
        offset[also] = (also, weights[also] + 1)
    return tuple(offset)


def mean(values: Sequence[float]) -> float:
    """Return the mean of losses, or of the losses' tensors (`evaluation.closures`)."""
    return sum(values) / len(values)

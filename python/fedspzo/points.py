"""Where losses are evaluated: points theta + s eps z, each block moved along its directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Offset = tuple[tuple[int, int], ...]  # (direction, sign) of each that a block is moved along
Point = tuple[Offset, ...]  # one offset a block
Losses = Mapping[Point, float]

HERE: Offset = ()  # the weights as they are


def along(direction: int, sign: int = +1) -> Offset:
    """Moved along one direction."""
    return ((direction, sign),)


def mean(values: Sequence[float]) -> float:
    """Of losses or their differences; of tensors too, as `fedspzo.losses` needs it."""
    return sum(values) / len(values)

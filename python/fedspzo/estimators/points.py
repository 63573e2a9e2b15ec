"""Where losses are evaluated: points theta + s eps z, each block moved along its directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Offset = tuple[tuple[int, float], ...]  # (direction, how far) of each that a block is moved along
Point = tuple[Offset, ...]  # one offset a block
Losses = Mapping[Point, float]

HERE: Offset = ()  # the weights as they are


def along(direction: int, sign: int = +1) -> Offset:
    """Moved along one direction."""
    return ((direction, sign),)


def blend(weights: Sequence[float], also: int | None = None) -> Offset:
    """Moved along all directions, each as far as its weight; and along one of them by 1 more."""
    return tuple((p, weight + (p == also)) for p, weight in enumerate(weights))


def mean(values: Sequence[float]) -> float:
    """Of losses or their differences; of tensors too, as `fedspzo.evaluation.closures` needs it."""
    return sum(values) / len(values)

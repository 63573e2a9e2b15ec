"""A step's walk over the points where it evaluates the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from .capture import Replay
from .displacement import Movable
from .points import Point


def walk(
    points: Iterable[Point],
    stands: Sequence[Movable],
    seeds: Sequence[Sequence[int]],
    eps: Sequence[float],
    replay: Replay,
    shares: Sequence[float],
    evaluate: Callable[[], Tensor],
) -> tuple[dict[Point, Tensor], float]:
    """Move the weights from point to point, replaying the leading blocks that stay.

    Args:
        points: in the order in which to visit them.
        stands: what moves each block.
        seeds: a block, its directions' seeds.
        eps: a block, how far it is moved along a direction.
        replay: entered.
        shares: for each block but the first, what an evaluation costs that replays those before it.
        evaluate: the loss where the stands are.

    Returns:
        The loss at each point, and what all of them cost, in full forward passes.
    """
    losses: dict[Point, Tensor] = {}
    forwards, captured = 0.0, Point()
    for point in points:
        for stand, block_seeds, offset, scale in zip(stands, seeds, point, eps, strict=True):
            stand.move({block_seeds[p]: sign * scale for p, sign in offset})
        # the leading blocks that are where they were when last captured
        same = next((i for i, at in enumerate(captured) if point[i] != at), 0)
        if same:
            replay.replay(same)
            forwards += shares[same - 1]
        else:
            replay.capture()
            forwards += 1.0
            captured = point
        losses[point] = evaluate()
        replay.check()
    return losses, forwards

"""A step's walk over the points where it evaluates the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.estimators.points import Point

from .in_place import MovableBlock


class Evaluator:
    """Moves the weights from point to point, replaying the leading blocks that stay.

    Args:
        stands: what moves each block.
        seeds: a block, its directions' seeds.
        eps: a block, how far it is moved along a direction.
        replay: entered.
        shares: for each block but the first, what an evaluation costs that replays those before it.
        evaluate: the loss at the weights as the blocks were last moved.

    Attributes:
        losses: at each point visited so far, in that order.
        forwards: what these cost, in full forward passes.
    """

    def __init__(
        self,
        stands: Sequence[MovableBlock],
        seeds: Sequence[Sequence[int]],
        eps: Sequence[float],
        replay: ActivationReplay,
        shares: Sequence[float],
        evaluate: Callable[[], Tensor],
    ) -> None:
        self._blocks = list(zip(stands, seeds, eps, strict=True))
        self._replay, self._shares, self._evaluate = replay, shares, evaluate
        self._captured = Point()
        self.losses: dict[Point, Tensor] = {}
        self._means: dict[Point, float] = {}
        self.forwards = 0.0

    def visit(self, points: Iterable[Point]) -> None:
        """Evaluate the loss at these points, in this order, where it was not yet."""
        for point in points:
            if point not in self.losses:
                self.losses[point] = self._at(point)

    def means(self) -> dict[Point, float]:
        """The losses as numbers, of several examples' losses their mean."""
        new = [point for point in self.losses if point not in self._means]
        if new:
            # one wait for the device, not one a loss
            means = torch.stack([self.losses[point].mean() for point in new])
            self._means |= zip(new, means.tolist(), strict=True)
        return dict(self._means)

    def _at(self, point: Point) -> Tensor:
        for (stand, seeds, scale), offset in zip(self._blocks, point, strict=True):
            stand.move({seeds[p]: far * scale for p, far in offset})
        # the leading blocks that are where they were when last captured
        same = next((i for i, at in enumerate(self._captured) if point[i] != at), 0)
        if same:
            self._replay.replay(same)
            self.forwards += self._shares[same - 1]
        else:
            self._replay.capture()
            self.forwards += 1.0
            self._captured = point
        loss = self._evaluate()
        self._replay.check()
        return loss

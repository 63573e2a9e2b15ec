"""The evaluator of a step: it moves the blocks to each point and evaluates the loss there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.estimators.points import HERE, Point

from .in_place import MovableBlock
from .recording import Recording


class Evaluator:
    """Evaluates the loss at points, and replays the leading blocks that have not moved.

    Args:
        blocks: the blocks, each of which can be moved. They are at the step's start.
        seeds: for each block, the seeds of its directions.
        eps: for each block, the distance of a move by 1 along a direction.
        replay: an entered activation replay.
        shares: for each block, the cost of an evaluation that replays what stands before it, in
            full forward passes.
        evaluate: returns the loss at the weights as the blocks were last moved: a scalar, or with
            privacy one loss an example, (B,).
        recording: returns a new recording, which makes the evaluations that move the last block
            alone. Default None: they run in full.

    Attributes:
        losses: the loss at each point evaluated so far, in that order.
        forwards: the cost of these evaluations, in full forward passes.
    """

    def __init__(
        self,
        blocks: Sequence[MovableBlock],
        seeds: Sequence[Sequence[int]],
        eps: Sequence[float],
        replay: ActivationReplay,
        shares: Sequence[float],
        evaluate: Callable[[], Tensor],
        recording: Callable[[], Recording] | None = None,
    ) -> None:
        self._blocks = list(zip(blocks, seeds, eps, strict=True))
        self._place: Point = tuple(HERE for _ in blocks)
        self._replay, self._shares, self._evaluate = replay, shares, evaluate
        self._captured = Point()
        self._new_recording = recording
        self._recording: Recording | None = None
        self.losses: dict[Point, Tensor] = {}
        self._means: dict[Point, float] = {}
        self.forwards = 0.0

    def visit(self, points: Iterable[Point]) -> None:
        """Evaluate the loss at these points, in this order, but at none a second time."""
        for point in points:
            if point not in self.losses:
                self.losses[point] = self._at(point)

    def means(self) -> dict[Point, float]:
        """Return the loss at each point as a number, the mean over examples if there are several.

        All losses that are new are read in one transfer from the device.
        """
        new = [point for point in self.losses if point not in self._means]
        if new:
            losses = [self.losses[point] for point in new]
            means = [loss.mean() if loss.dim() else loss for loss in losses]
            # one wait for the device is enough for all
            self._means |= zip(new, torch.stack(means).tolist(), strict=True)
        return dict(self._means)

    def _at(self, point: Point) -> Tensor:
        for at, to, (block, seeds, scale) in zip(self._place, point, self._blocks, strict=True):
            if to != at:
                block.move({seeds[p]: distance * scale for p, distance in to})
        self._place = point
        # number of leading blocks that are at the point where they were captured
        same = next((i for i, at in enumerate(self._captured) if point[i] != at), 0)
        if same:
            share = self._shares[same]
            loss = self._replayed(same)
        else:
            share = self._shares[0] if self._replay.keeps_frozen else 1.0
            self._replay.capture()
            self._captured = point
            # what a recording has read is as of one capture
            self._recording = self._new_recording() if self._new_recording else None
            loss = self._replay.evaluated(self._evaluate)
        again = self._replay.rerun()
        if again:  # the model was given other inputs
            self._recording = None
        self.forwards += share + (1 - share) * again
        return loss

    def _replayed(self, blocks: int) -> Tensor:
        def evaluate() -> Tensor:
            self._replay.replay(blocks)
            return self._replay.evaluated(self._evaluate)

        if blocks == len(self._blocks) - 1 and self._recording is not None:
            return self._recording.evaluated(evaluate)
        return evaluate()

"""Block statistics: the numbers that a block's turns have shown with `lr="auto"`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedspzo.blocks.shards import whole

from .constants import LEARNING_TURNS, TURN_DECAY

PART = 2**22
"""Number of a tensor's elements that are copied to float32 at a time."""


@dataclass
class BlockStatistics:
    """Collects statistics of a block's turns. A turn is a step in which the block moves.

    Attributes:
        weight_rms: root mean square of the block's weights before the first step.
        turns: number of turns so far.
        directions: number of directions of the last turn.
        square_sum: sum over the first `LEARNING_TURNS` turns of the mean squared projected
            gradient. A block that takes Newton steps counts the gradient times the damped gradient,
            here and in `smoothed_square`.
        trace_sum: sum over these turns of the size of the Hessian's estimated trace; None if a turn
            did not show it. A block that takes Newton steps sums typical eigenvalues instead.
        smoothed_square: moving average of the mean squared projected gradient.
        smoothed_eigenvalue: moving average of the typical eigenvalue of the Hessian along the
            block's directions; 0 for a block that takes no Newton steps.
        steps_since_turn: number of steps since the last turn.
        turn_interval: number of steps from one turn to the next.
    """

    weight_rms: float
    turns: int = 0
    directions: int = 0
    square_sum: float = 0.0
    trace_sum: float | None = 0.0
    smoothed_square: float = 0.0
    smoothed_eigenvalue: float = 0.0
    steps_since_turn: int = 0
    turn_interval: int = 1

    @property
    def takes_newton_steps(self) -> bool:
        """The block takes Newton steps: the curvature along its directions is known."""
        return self.smoothed_eigenvalue != 0

    @property
    def is_learning(self) -> bool:
        """The block's next turn still counts for the sums that set its rate."""
        return self.turns < LEARNING_TURNS

    def add_turn(self, directions: int, square: float, trace: float | None) -> None:
        """Add a turn.

        Args:
            directions: number of the turn's directions.
            square: mean squared projected gradient.
            trace: size of the Hessian's estimated trace; None if the turn did not show it.
        """
        self.smoothed_square += self._news * (square - self.smoothed_square)
        if self.is_learning:
            self.square_sum += square
            known = self.trace_sum
            self.trace_sum = None if trace is None or known is None else known + trace
        self.directions = directions
        self.steps_since_turn = 0
        self.turns += 1

    def add_eigenvalue(self, eigenvalue: float) -> float:
        """Add the typical eigenvalue of a turn. Call it before `add_turn`.

        Returns:
            The damping of the turn's Newton step: the larger of the moving average and the mean
            over the first `LEARNING_TURNS` turns.
        """
        self.smoothed_eigenvalue += self._news * (eigenvalue - self.smoothed_eigenvalue)
        early = (self.trace_sum or 0.0) + (eigenvalue if self.is_learning else 0.0)
        return max(self.smoothed_eigenvalue, early / min(self.turns + 1, LEARNING_TURNS))

    @property
    def _news(self) -> float:
        """The weight of a turn's values in the moving averages."""
        return 1 - TURN_DECAY if self.turns else 1.0


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """Return the root mean square of all elements of `tensors`; 0 if there are none."""
    parts = (part for tensor in tensors for part in whole(tensor).reshape(-1).split(PART))
    total = sum(float(part.float().square().sum()) for part in parts)
    return math.sqrt(total / max(1, sum(tensor.numel() for tensor in tensors)))


def mean_product(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the mean of a_k b_k; 0 if there are none."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / max(1, len(a))

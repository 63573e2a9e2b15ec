"""Where a block's weights stand: the terms on top of them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

import fedspzo_kernels
from fedspzo.choices import Rounding

key_of = cache(fedspzo_kernels.parameter_key)


class MovableBlock(Protocol):
    """What an evaluation's weights are moved by."""

    def move(self, target: Mapping[int, float]) -> None:
        """Evaluate from now on at the step's start plus `target`, seed to coefficient."""


class InPlaceBlock:
    """A block's weights on their way through a step, always one `restore()` from its start.

    In place, a move adds the difference between where the weights stand and where they go, in one
    op, so a way back is exact to the rounding of in-place arithmetic. With a snapshot of the
    weights at the start, every move begins there and the way back is exact to the bit.

    Args:
        group: (name, tensor) pairs; the tensors are changed in place.
        snapshot: keep one, on the tensors' devices.
    """

    def __init__(self, group: Sequence[tuple[str, Tensor]], *, snapshot: bool) -> None:
        self._tensors = [tensor for _, tensor in group]
        self._terms: dict[int, float] = {}
        self._snapshot = [t.detach().clone() for t in self._tensors] if snapshot else None
        self._perturber = fedspzo_kernels.Perturber(
            self._snapshot or self._tensors, [key_of(name) for name, _ in group]
        )

    def move(
        self,
        target: Mapping[int, float],
        *,
        rounding: Rounding = "nearest",
        rounding_seed: int | None = None,
    ) -> None:
        """Go to the step's start plus `target`, seed to coefficient."""
        if target == self._terms and rounding == "nearest":
            return
        if self._snapshot is None:
            delta = {seed: -coefficient for seed, coefficient in self._terms.items()}
            for seed, coefficient in target.items():
                delta[seed] = delta.get(seed, 0.0) + coefficient
            delta = {seed: c for seed, c in delta.items() if c != 0}
            if delta and self._tensors:
                self._perturber.add_(
                    list(delta),
                    list(delta.values()),
                    rounding=rounding,
                    rounding_seed=rounding_seed,
                )
        elif target and self._tensors:
            self._perturber.add(
                list(target),
                list(target.values()),
                out=self._tensors,
                rounding=rounding,
                rounding_seed=rounding_seed,
            )
        else:
            self._copy_back()
        self._terms = dict(target)

    def decay(self, factor: float) -> None:
        """Multiply the weights at the step's start by `factor`, and go there."""
        self.move({})
        for tensor in self._tensors:
            tensor.mul_(factor)

    def settle(self) -> None:
        """Make where the weights stand the place to return to."""
        self._terms = {}

    def restore(self) -> None:
        """Return to the step's start: to the bit by a snapshot, else to the moves' rounding."""
        if self._snapshot is None:
            self.move({})
        else:
            self._copy_back()

    def _copy_back(self) -> None:
        for tensor, start in zip(self._tensors, self._snapshot or (), strict=True):
            tensor.copy_(start)

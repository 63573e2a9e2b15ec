"""Move a block's weights in place, and move them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Protocol

from torch import Tensor

from fedspzo.blocks.shards import first_index, local
from fedspzo.choices import Rounding, Stream
from fedspzo_kernels import Perturber, parameter_key
from fedspzo_kernels.arguments import Terms

key_of = cache(parameter_key)


class MovableBlock(Protocol):
    """A block that can be moved: evaluations then see its weights at the target."""

    def move(self, target: Mapping[int, float]) -> None:
        """Move to the step's start plus `target`.

        Args:
            target: seed to coefficient: the sum of coefficient * z(seed) is added to the weights.
        """


class InPlaceBlock:
    """Moves a block's weights in place. `restore()` always returns to the step's start.

    Without a snapshot a move adds the difference between two targets in one op, so the way back is
    exact to the rounding of in-place arithmetic. With a snapshot of the weights at the start every
    move begins there, and the way back is exact to the bit.

    Args:
        group: (name, tensor) pairs; the tensors are changed in place. Of one that is sharded, each
            process changes its own part.
        snapshot: keep a copy of the tensors, on their devices.
        stream: the noise stream.
    """

    def __init__(
        self, group: Sequence[tuple[str, Tensor]], *, snapshot: bool, stream: Stream
    ) -> None:
        parts = [(name, local(t), first_index(t)) for name, t in group]
        parts = [part for part in parts if part[1].numel()]
        self._names = [name for name, _, _ in parts]
        self._tensors = [tensor for _, tensor, _ in parts]
        self._firsts, self._stream = [first for _, _, first in parts], stream
        self._terms: dict[int, float] = {}
        self._snapshot = [t.detach().clone() for t in self._tensors] if snapshot else None

    @cached_property
    def _perturber(self) -> Perturber:
        """Moves the tensors. It is made by the first move, as a block that rests needs none."""
        starts = self._snapshot or self._tensors
        keys = [key_of(name) for name in self._names]
        return Perturber(starts, keys, offsets=self._firsts, stream=self._stream)

    @cached_property
    def _write(self) -> Callable[[Terms], None]:
        """Writes the moved snapshot to the tensors."""
        return self._perturber.into(self._tensors)

    def move(
        self,
        target: Mapping[int, float],
        *,
        rounding: Rounding = "nearest",
        rounding_seed: int | None = None,
    ) -> None:
        """Move to the step's start plus `target`.

        Args:
            target: seed to coefficient: the sum of coefficient * z(seed) is added to the weights.
            rounding: "nearest" (default) or "stochastic", to the weights' dtype.
            rounding_seed: the 64-bit seed of stochastic rounding.
        """
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
        elif target:
            terms = list(target), list(target.values())
            self._write(Terms.of(*terms, rounding, rounding_seed))
        else:
            self._copy_back()
        self._terms = dict(target)

    def decay(self, factor: float, spared: Sequence[str] = ()) -> None:
        """Return to the step's start, and multiply the weights there by `factor`.

        Args:
            factor: the factor.
            spared: parts of names. A parameter whose name has one of them is not multiplied.
        """
        self.move({})
        for name, tensor in zip(self._names, self._tensors, strict=True):
            if not any(part in name for part in spared):
                tensor.mul_(factor)

    def settle(self) -> None:
        """Keep the weights as they are now: the next step starts there."""
        self._terms = {}

    def restore(self) -> None:
        """Return to the step's start: to the bit with a snapshot, else to the moves' rounding."""
        if self._snapshot is None:
            self.move({})
        else:
            self._copy_back()

    def _copy_back(self) -> None:
        for tensor, start in zip(self._tensors, self._snapshot or (), strict=True):
            tensor.copy_(start)

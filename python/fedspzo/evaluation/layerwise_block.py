"""A block in layerwise evaluation: it holds the terms that are added to its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedspzo.choices import Stream
from fedspzo_kernels import Perturber
from fedspzo_kernels.arguments import Terms, stream_code
from fedspzo_kernels.perturber import perturb_unchecked

from .in_place import InPlaceBlock
from .scratch_buffer import ScratchBuffer


class LayerwiseBlock:
    """Moves a block's virtual parameters: it holds the terms that are added to their weights.

    Args:
        scratch: the memory for perturbed copies.
        copied: the (name, tensor) pairs of parameters that have no virtual parameter. They are
            moved in place, from a copy.
        stream: the noise stream.

    Attributes:
        terms: seed to coefficient, as last moved.
    """

    def __init__(
        self, scratch: ScratchBuffer, copied: Sequence[tuple[str, Tensor]], stream: Stream
    ) -> None:
        self.scratch, self.stream, self._code = scratch, stream, stream_code(stream)
        self.terms: dict[int, float] = {}
        self._scalars: dict[torch.device, Terms] = {}
        self.copy(copied)

    def copy(self, members: Sequence[tuple[str, Tensor]]) -> None:
        """Move these (name, tensor) pairs in place from now on."""
        self._copied = InPlaceBlock(members, snapshot=True, stream=self.stream)
        self._copied.move(self.terms)

    def move(self, target: Mapping[int, float]) -> None:
        """Move to the weights plus `target`, seed to coefficient."""
        self.terms = dict(target)
        self._scalars.clear()
        self._copied.move(target)

    def restore(self) -> None:
        """Copy back the parameters that were moved in place."""
        self._copied.restore()

    def scalars(self, device: torch.device) -> Terms:
        """Return the terms, checked, on a device."""
        if device not in self._scalars:
            terms = Terms.of(list(self.terms), list(self.terms.values()), "nearest", None)
            self._scalars[device] = terms.to(device)
        return self._scalars[device]

    def write(
        self,
        parts: list[Tensor],
        keys: list[int],
        firsts: list[int],
        out: list[Tensor],
    ) -> None:
        """Write perturbed weights to `out`.

        Args:
            parts: the weights, or some rows of each, detached and on one device.
            keys: the key of each one's noise, as an int64.
            firsts: the index of each one's first element in its parameter.
            out: for each one a contiguous tensor of its shape, dtype and device.
        """
        terms = self.scalars(out[0].device)
        if all(part.is_contiguous() for part in parts):
            # they fit, and a model has hundreds of small ones: checks would take longer
            perturb_unchecked(parts, out, keys, firsts, terms, self._code)
        else:
            Perturber(parts, keys, offsets=firsts, stream=self.stream).into(out)(terms)

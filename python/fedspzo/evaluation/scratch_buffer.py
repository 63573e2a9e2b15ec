"""The scratch buffer: memory for the perturbed copies of one operation's weights at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_ALIGN = 64  # bytes, as torch's own allocations


def footprint(tensors: Iterable[Tensor]) -> int:
    """Return the number of bytes that copies of these tensors take in a scratch buffer."""
    return sum(-(-tensor.nbytes // _ALIGN) * _ALIGN for tensor in tensors)


class ScratchBuffer:
    """Holds a buffer on each device that needs one, for the weights of one operation at a time.

    Args:
        limit: largest size of a buffer, in bytes. An operation that needs more gets memory of its
            own, with one warning for each parameter.

    Attributes:
        aside: takes an operation's operands besides its virtual parameter, and returns a context in
            which that may read its weight unrecorded.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.aside: Callable[[Sequence[Any]], AbstractContextManager[Any]] = nullcontext
        self._buffers: dict[torch.device, Tensor] = {}
        self._sizes: dict[torch.device, int] = {}  # the largest yet of each device's buffers
        self._views: dict[tuple[Any, ...], list[Tensor]] = {}  # what `take` returned, by layout
        self._told: set[str] = set()

    def take(self, likes: Sequence[Tensor], name: str) -> list[Tensor]:
        """Return contiguous tensors of the shapes and dtypes of others, valid until the next call.

        Args:
            likes: the other tensors, on one device.
            name: the name of the parameter to warn of if they do not fit.
        """
        device = likes[0].device
        layout = (device, *((like.dtype, like.shape) for like in likes))
        if layout in self._views:
            return self._views[layout]
        sizes = [footprint([like]) for like in likes]
        total = sum(sizes)
        if total > self.limit:
            self._tell(name, total)
            return [torch.empty(like.shape, dtype=like.dtype, device=device) for like in likes]
        if device not in self._buffers or self._buffers[device].nbytes < total:
            self._views.clear()
            self._buffers.pop(device, None)  # freed before its successor is there
            # as large as it was before it was given back, so that it grows in the first step alone
            size = self._sizes[device] = max(total, self._sizes.get(device, 0))
            self._buffers[device] = torch.empty(size, dtype=torch.uint8, device=device)
        parts = self._buffers[device][:total].split(sizes)
        self._views[layout] = [
            part[: like.nbytes].view(like.dtype).view(like.shape)
            for part, like in zip(parts, likes, strict=True)
        ]
        return self._views[layout]

    def _tell(self, name: str, size: int) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(
                f"a perturbed copy of {name!r} takes {size} bytes, more than the scratch buffer"
                f" has ({self.limit}): it gets memory of its own. To hold it, pass scratch_bytes",
                stacklevel=2,
            )

    @property
    def watched(self) -> bool:
        """Reading a weight outside `aside` is recorded."""
        return self.aside is not nullcontext

    def rows(self, tensors: Sequence[Tensor]) -> int:
        """Return how many rows of all these tensors fit into the buffer at a time, at least one."""
        count = len(tensors[0])
        if footprint(tensors) <= self.limit:
            return count
        row = sum(tensor.nbytes // count for tensor in tensors)
        return max(1, (self.limit - _ALIGN * len(tensors)) // row)

    def free(self) -> None:
        """Give the memory back."""
        self._views.clear()
        self._buffers.clear()

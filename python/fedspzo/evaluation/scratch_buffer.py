"""The memory in which perturbed copies of weights exist, one operation's at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_ALIGN = 64  # bytes, as torch's own allocations


def footprint(tensors: Iterable[Tensor]) -> int:
    """The bytes that copies of these tensors take in a scratch buffer."""
    return sum(-(-tensor.nbytes // _ALIGN) * _ALIGN for tensor in tensors)


class ScratchBuffer:
    """A buffer on each device that needs one, for the weights of one operation at a time.

    Args:
        limit: its bytes at most. An operation that needs more gets memory of its own, with a
            warning, once for each parameter.

    Attributes:
        aside: makes a context in which virtual parameters read the weights they stand for.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.aside: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._buffers: dict[torch.device, Tensor] = {}
        self._views: dict[tuple[Any, ...], list[Tensor]] = {}  # what `take` gave, by layout
        self._told: set[str] = set()

    def take(self, likes: Sequence[Tensor], name: str) -> list[Tensor]:
        """Contiguous tensors of the shapes and dtypes of others, valid until the next call.

        Args:
            likes: the others, on one device.
            name: the parameter to name if they do not fit.
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
            self._buffers[device] = torch.empty(total, dtype=torch.uint8, device=device)
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
        """Whether reading a weight outside `aside` is noticed."""
        return self.aside is not nullcontext

    def rows(self, tensors: Sequence[Tensor]) -> int:
        """How many rows of all these tensors fit, at least one."""
        count = len(tensors[0])
        if footprint(tensors) <= self.limit:
            return count
        row = sum(tensor.nbytes // count for tensor in tensors)
        return max(1, (self.limit - _ALIGN * len(tensors)) // row)

    def free(self) -> None:
        """Give the memory back."""
        self._views.clear()
        self._buffers.clear()

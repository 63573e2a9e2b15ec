"""Tell tied parameters apart from equal ones, and take each storage once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .shards import local

Named = tuple[tuple[str, nn.Parameter], ...]


def storage(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key of a tensor's memory: equal for tied tensors, else different."""
    part = local(tensor)
    if part.device.type == "meta" or part.numel() == 0:
        return (id(tensor),)
    # of a dimension of one element the stride means nothing
    strides = (s for n, s in zip(part.shape, part.stride(), strict=True) if n > 1)
    return (part.device, part.data_ptr(), part.shape, *strides)


def trainable(named: Iterable[tuple[str, nn.Parameter]]) -> Named:
    """Return the parameters that require a gradient, each storage once, under its first name."""
    kept: dict[tuple[Any, ...], tuple[str, nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            kept.setdefault(storage(parameter), (name, parameter))
    return tuple(kept.values())


def check_apart(named: Iterable[tuple[str, Tensor]]) -> None:
    """Check that no parameters share elements. A step would move these once for each.

    Args:
        named: the (name, parameter) pairs, each storage once.

    Raises:
        ValueError: two of them do, as a weight and its transpose; the message names them.
    """
    parts = [(name, local(tensor)) for name, tensor in named]
    parts = [(name, part) for name, part in parts if part.numel() and part.device.type != "meta"]
    parts.sort(key=lambda pair: (str(pair[1].device), pair[1].data_ptr()))
    earlier: list[tuple[str, Tensor]] = []  # those that end after the next one's start
    for name, part in parts:
        earlier = [(other, before) for other, before in earlier if _reaches(before, part)]
        for other, before in earlier:
            if _share_elements(before, part):
                raise ValueError(
                    f"parameters {other!r} and {name!r} share elements, but differ in shape or"
                    " strides, as a weight and its transpose do; freeze one of them by"
                    " requires_grad_(False), and it follows the other"
                )
        earlier.append((name, part))


def _reaches(part: Tensor, following: Tensor) -> bool:
    """Tell whether a tensor ends after the address where another one starts."""
    end = part.data_ptr() + _extent(part) * part.element_size()
    return part.device == following.device and following.data_ptr() < end


def _share_elements(part: Tensor, following: Tensor) -> bool:
    """Tell whether two tensors share elements, of which the first reaches the second's start."""
    start, rest = divmod(following.data_ptr() - part.data_ptr(), part.element_size())
    if rest or following.element_size() != part.element_size():
        return True
    taken = torch.zeros(
        max(_extent(part), start + _extent(following)), dtype=torch.bool, device="cpu"
    )
    taken.as_strided(part.shape, part.stride()).fill_(True)
    return bool(taken.as_strided(following.shape, following.stride(), start).any())


def _extent(tensor: Tensor) -> int:
    """Return the number of elements from a tensor's first to its last one in memory."""
    places = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((count - 1) * stride for count, stride in places)

"""Tell tied parameters apart from equal ones, and take each storage once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .shards import local

Named = tuple[tuple[str, nn.Parameter], ...]


def storage(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key of a tensor's memory: equal for tied tensors, else different."""
    part = local(tensor)
    if part.device.type == "meta" or part.numel() == 0:
        return (id(tensor),)
    return (part.device, part.data_ptr(), part.shape)


def trainable(named: Iterable[tuple[str, nn.Parameter]]) -> Named:
    """Return the parameters that require a gradient, each storage once, under its first name."""
    kept: dict[tuple[Any, ...], tuple[str, nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            kept.setdefault(storage(parameter), (name, parameter))
    return tuple(kept.values())

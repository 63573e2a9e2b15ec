"""Keep running statistics where they are while a step evaluates the loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def kept_running_statistics() -> Iterator[None]:
    """Put back what batch normalisation counts inside the `with` block, in any model.

    This is for an optimizer of bare parameters, which knows no module whose training flag it could
    clear. A module in training mode still normalises by its batch, but its running mean, its
    running variance and its number of batches are afterwards what they were.
    """
    kept: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def keep(module: nn.Module, _: Any) -> None:
        if isinstance(module, _NormBase) and module.training and module not in kept:
            buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
            kept[module] = [(buffer, buffer.clone()) for buffer in buffers]

    hook = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        for buffers in kept.values():
            for buffer, start in buffers:
                buffer.copy_(start)

"""Fine-tune language models with forward passes alone, federated by exchanging scalars.

`SPZO` is the optimizer, `split` cuts a model into blocks; `fedspzo.federated` holds the
server, the clients and the in-process loop, `fedspzo_kernels` the fused op underneath.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks import Blocks, split
    from .optimizer import SPZO

__all__ = ["SPZO", "Blocks", "__version__", "split"]

__version__ = "0.1.0"

_HOMES = {"SPZO": "optimizer", "Blocks": "blocks", "split": "blocks"}


def __getattr__(name: str) -> Any:
    # On first use: `fedspzo --help` and errors in a config come without waiting for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

"""Set a model's mode while a step evaluates it: without dropout, caches and compiled code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Turn off dropout and caches inside the `with` block, and put the flags back after it.

    Every submodule's `training` flag is cleared directly, as `model.eval()` may do more, such as
    merging adapters. A Hugging Face configuration's `use_cache` is cleared too: with it a decoder
    keeps all layers' keys and values for tokens that never come.

    Args:
        model: the model; None: nothing is changed.
    """
    modules = [] if model is None else list(model.modules())
    configs = [vars(module).get("config") for module in modules]
    flags = [*((m, "training") for m in modules), *((c, "use_cache") for c in configs)]
    flags = [(owner, flag) for owner, flag in flags if getattr(owner, flag, None) is True]
    try:
        for owner, flag in flags:
            with suppress(AttributeError):  # a frozen configuration stays as it is
                setattr(owner, flag, False)
        yield
    finally:
        for owner, flag in flags:
            with suppress(AttributeError):
                setattr(owner, flag, True)


def has_compiled() -> bool:
    """Tell whether torch.compile has compiled any code in this process."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and dynamo.utils.counters["frames"]["total"] > 0


def eager() -> AbstractContextManager[Any]:
    """Return a context in which a compiled model runs its own code, uncompiled.

    A dispatch mode or a virtual parameter is not something that a compiler can trace.
    """
    compiled = "torch._dynamo" in sys.modules  # to import it would take seconds
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()

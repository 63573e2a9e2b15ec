"""Set a model's mode while a step evaluates it: without dropout, caches and compiled code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn

from .every_module import every_module


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Turn off dropout and caches inside the `with` block, and put the flags back after it.

    Every submodule's `training` flag is cleared directly, as `model.eval()` may do more, such as
    merging adapters. A Hugging Face configuration's `use_cache` is cleared too: with it a decoder
    keeps all layers' keys and values for tokens that never come.

    Args:
        model: the model; None: nothing is changed.
    """
    modules = [] if model is None else every_module(model)
    configs = [config for module in modules if (config := vars(module).get("config")) is not None]
    unique = {id(config): config for config in configs}.values()  # many modules share one
    training = [module for module in modules if module.training]
    caching = [config for config in unique if getattr(config, "use_cache", None) is True]

    def turn(to: bool) -> None:
        for module in training:
            module.training = to
        for config in caching:
            with suppress(AttributeError):  # a frozen configuration stays as it is
                config.use_cache = to

    try:
        turn(False)
        yield
    finally:
        turn(True)


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

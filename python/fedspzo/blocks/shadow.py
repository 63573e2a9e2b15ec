"""Shadow a module's `forward` for a while, whether the model calls the module or its `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]
_ABSENT = object()


@contextmanager
def shadowed(module: nn.Module, shadow: Callable[[Forward], Forward]) -> Iterator[None]:
    """Put another `forward` in the place of a module's own inside the `with` block.

    Args:
        module: the module. accelerate, among others, keeps a forward of its own in the instance;
            it is put back.
        shadow: makes the new `forward` from the one that is there.
    """
    own = module.__dict__.get("forward", _ABSENT)
    module.forward = shadow(module.forward)
    try:
        yield
    finally:
        if own is _ABSENT:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own


def on_return(
    module: nn.Module, callback: Callable[[nn.Module], None]
) -> AbstractContextManager[None]:
    """Call `callback(module)` inside the `with` block, each time that its `forward` returns."""

    def shadow(forward: Forward) -> Forward:
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            callback(module)
            return output

        return watched

    return shadowed(module, shadow)

"""A model's modules, each once, as a step looks through them several times."""

from __future__ import annotations

from torch import nn


def every_module(model: nn.Module) -> list[nn.Module]:
    """Return what `model.modules()` yields, level by level, in a fraction of the time.

    That runs a generator for each level of the model.
    """
    found = [model]
    seen: set[nn.Module | None] = {None, model}
    for module in found:  # which grows on the way
        for child in module._modules.values():
            if child not in seen:
                seen.add(child)
                found.append(child)  # type: ignore[arg-type]
    return found

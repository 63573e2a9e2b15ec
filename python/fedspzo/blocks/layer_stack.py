"""Find a model's layer stack, and the layers at which `at` cuts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

HEAD = "head"

_HOW = (
    "pass at='NAME' with the qualified name of block 2's first layer, an entry of an nn.ModuleList"
    " or nn.Sequential that the model runs in order (see model.named_modules())"
)


def find_stack(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the model's layer stack: its largest list of modules of one class.

    Raises:
        ValueError: there is no such list, or there are several of like size.
    """
    found: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            layers = list(module)
            distinct = len(set(layers)) == len(layers) >= 2
            nested = any(name.startswith(f"{stack}.") for stack in found)
            alike = len({type(layer) for layer in layers}) == 1
            if distinct and alike and not nested and _size(module):
                found[name] = layers
    if not found and isinstance(model, nn.Sequential) and len(model) >= 2:
        found[""] = list(model)
    ranked = sorted(found, key=lambda name: _size(model.get_submodule(name)), reverse=True)
    if not ranked:
        raise ValueError(f"{type(model).__name__} has no list of two or more like layers; {_HOW}")
    if len(ranked) > 1:
        first, second = (_size(model.get_submodule(name)) for name in ranked[:2])
        if 2 * second > first:
            stacks = ", ".join(repr(f"{name}.{len(found[name]) - 1}") for name in ranked)
            raise ValueError(
                f"{type(model).__name__} has several stacks of layers, with last layers {stacks};"
                f" {_HOW}"
            )
    return tuple(found[ranked[0]])


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def find_cuts(
    model: nn.Module, at: int | str | Sequence[int | str]
) -> tuple[tuple[nn.Module, ...], tuple[int, ...]]:
    """Return the layer stack, and for each block but the first its first layer's index there.

    Args:
        model: the module itself.
        at: the cuts, as `blocks.split` takes them. "auto" gives the two cuts that `split` chooses
            between.

    Raises:
        TypeError, ValueError: as `blocks.split` does for `at`.
    """
    wanted = list(at) if isinstance(at, Sequence) and not isinstance(at, str) else [at]
    for item in wanted:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise TypeError(
                f"at is {at!r}; pass 'auto', a layer's index, its qualified name, 'head', or a"
                " sequence of them"
            )
    names = [item for item in wanted if isinstance(item, str) and item not in ("auto", HEAD)]
    found = {name: _find_layer(model, name) for name in names}
    stack = next((layers for layers, _ in found.values()), None) or find_stack(model)
    n = len(stack)
    if at == "auto":
        return stack, (n - max(1, n // 8), n)
    cuts: list[int] = []
    for item in wanted:
        if item == HEAD:
            cut = n
        elif isinstance(item, int):
            cut = item + n if item < 0 else item
            if not 0 < cut < n:
                raise ValueError(
                    f"at is {at}, but the stack has {n} layers and each block needs one; pass an"
                    f" int from 1 to {n - 1}, or from {1 - n} to -1, or 'head'"
                )
        else:
            cut = _cut(item, found, stack)
        cuts.append(cut)
    if not cuts or cuts != sorted(set(cuts)):
        raise ValueError(f"at is {at!r}; name each block's first layer but block 1's, in order")
    return stack, tuple(cuts)


def _cut(
    name: str,
    found: Mapping[str, tuple[tuple[nn.Module, ...], int]],
    stack: tuple[nn.Module, ...],
) -> int:
    if name not in found:
        raise ValueError(f"'auto' stands for all cuts; {_HOW}")
    layers, cut = found[name]
    if layers != stack:
        raise ValueError(f"at names {name!r}, a layer of another stack than the first; {_HOW}")
    return cut


def _find_layer(model: nn.Module, at: str) -> tuple[tuple[nn.Module, ...], int]:
    """Return the list that holds the layer named `at`, and the layer's index there."""
    modules = dict(model.named_modules())
    names = [at] if at in modules else [name for name in modules if name.endswith(f".{at}")]
    if len(names) != 1:
        problem = "fits several modules" if names else "names no module"
        raise ValueError(f"at is {at!r}, which {problem} of {type(model).__name__}; {_HOW}")
    parent, _, index = names[0].rpartition(".")
    stack = modules[parent]
    if not isinstance(stack, nn.ModuleList | nn.Sequential) or not index.isdecimal():
        raise ValueError(f"at is {at!r}, which is not an entry of a list of layers; {_HOW}")
    cut = int(index)
    if not 0 < cut < len(stack):
        raise ValueError(f"at is {at!r}, the first of its layers; name a later one")
    return tuple(stack), cut

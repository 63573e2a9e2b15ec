"""Find a model's layer stack, and the layers at which `at` cuts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import nn

from .trace import Trace

HEAD = "head"

_HOW = (
    "pass at='NAME' with the qualified name of block 2's first layer, an entry of an nn.ModuleList"
    " or nn.Sequential that the model runs in order (see model.named_modules())"
)

At = int | str | Sequence[int | str]
Layers = tuple[nn.Module, ...]
Stacks = dict[str, Layers]


@dataclass(frozen=True)
class Stack:
    """The layers that a model runs one after another.

    Attributes:
        layers: the layers, in order.
        whole: why the layers are one module, which cannot be cut inside; empty if they can.
    """

    layers: Layers
    whole: str = ""


def find_stacks(model: nn.Module) -> Stacks:
    """Return the model's lists of two or more layers by name, each that is in no other one.

    A list is an nn.ModuleList or an nn.Sequential. Its layers may be of several classes.
    """
    found: Stacks = {}
    for name, module in _lists(model).items():
        nested = any(not stack or name.startswith(f"{stack}.") for stack in found)
        layers = tuple(module)
        distinct = len(set(layers)) == len(layers) >= 2
        looked_up = all(isinstance(layer, nn.Embedding) for layer in layers)
        if distinct and not nested and not looked_up and not _holds_a_stack(module):
            found[name] = layers
    return found


def _lists(model: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Return all lists with parameters by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and size(tuple(module))
    }


def _holds_a_stack(module: nn.Module) -> bool:
    """Tell whether a list is a Sequential of an embedding, an encoder and a head, or the like."""
    alike = len({type(layer) for layer in module.children()}) == 1
    mixed = isinstance(module, nn.Sequential) and not alike
    return mixed and any(find_stacks(layer) for layer in module.children())


def size(layers: Sequence[nn.Module]) -> int:
    """Return the number of parameters of some layers."""
    return sum(p.numel() for layer in layers for p in layer.parameters())


def modules_to_trace(model: nn.Module, at: At) -> list[nn.Module]:
    """Return the modules whose returns `find_cuts` needs to know.

    Raises:
        ValueError: a name in `at` is no layer's.
    """
    named = (name for name, _ in _named(model, at).values())
    lists = {*find_stacks(model), *_outermost(_lists(model)), *named}
    modules: dict[nn.Module, None] = {}
    for name in lists:
        parts = name.split(".") if name else []
        above = (model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts)))
        modules |= dict.fromkeys((*above, *model.get_submodule(name).children()))
    return [m for m in modules if not isinstance(m, nn.ModuleList | nn.ModuleDict)]


def _outermost(names: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for name in names:
        if not any(name.startswith(f"{other}.") for other in kept):
            kept.append(name)
    return kept


def find_stack(model: nn.Module, trace: Trace | None = None) -> Stack:
    """Return the model's layer stack: its largest list of layers.

    Of an encoder-decoder it is the decoder's, and of a model of text and images the text's. Of
    several large lists it is the one that runs last.

    Args:
        model: the module itself.
        trace: a forward pass that has recorded the returns of `modules_to_trace`, or None.

    Raises:
        ValueError: there is no list of layers, or there are several and no trace.
    """
    trace = trace if trace is not None and trace.returns else None
    stacks = _in_decoder(model, _that_ran(find_stacks(model), trace))
    if not stacks:
        lists = _lists(model)
        largest = sorted(_outermost(lists), key=lambda name: size(tuple(lists[name])))[-1:]
        return _body(model, largest, trace, "all its layers are one module")
    ranked = sorted(stacks, key=lambda name: size(stacks[name]), reverse=True)
    rivals = [name for name in ranked if 2 * size(stacks[name]) > size(stacks[ranked[0]])]
    chosen = rivals[0]
    if trace is not None:
        chosen = max(rivals, key=lambda name: _last_return(stacks[name], trace))
        if sum(module in stacks[chosen] for module in trace.returns) > len(stacks[chosen]):
            return _body(model, rivals, trace, "it runs its layers again and again")
    partners = [name for name in ranked if name != chosen and _take_turns(chosen, name, stacks)]
    if partners:
        names = [chosen, *partners]
        return _body(model, names, trace, "it runs several lists of layers in turn")
    if any(isinstance(layer, nn.ModuleList | nn.ModuleDict) for layer in stacks[chosen]):
        return _body(model, [chosen], trace, "its layers are lists themselves")
    if trace is None and len(rivals) > 1:
        names_of_last = ", ".join(repr(f"{name}.{len(stacks[name]) - 1}") for name in rivals)
        raise ValueError(
            f"{type(model).__name__} has several stacks of layers, with last layers"
            f" {names_of_last}; {_HOW}"
        )
    return Stack(stacks[chosen])


def _that_ran(stacks: Stacks, trace: Trace | None) -> Stacks:
    """Leave out the lists that did not run, unless none did."""
    ran = set(trace.returns) if trace is not None and trace.complete else set()
    return {name: layers for name, layers in stacks.items() if ran & set(layers)} or stacks


def _in_decoder(model: nn.Module, stacks: Stacks) -> Stacks:
    """Keep what is in a Hugging Face model's decoder or language model, if that holds any."""
    get: Callable[[], object] | None = getattr(model, "get_decoder", None)
    decoder = None if get is None else get()
    inside = set(decoder.modules()) if isinstance(decoder, nn.Module) else set()
    return {name: layers for name, layers in stacks.items() if inside.issuperset(layers)} or stacks


def _last_return(layers: Layers, trace: Trace) -> int:
    return max((i for i, module in enumerate(trace.returns) if module in layers), default=-1)


def _take_turns(name: str, other: str, stacks: Stacks) -> bool:
    """Tell whether two lists stand side by side, equally long, and neither is small.

    XLM has its layers' attentions, norms and feed-forward parts in lists of their own.
    """
    beside = name.rpartition(".")[0] == other.rpartition(".")[0]
    small, large = sorted(size(stacks[n]) for n in (name, other))
    return beside and len(stacks[name]) == len(stacks[other]) and 8 * small > large


def _body(model: nn.Module, names: Sequence[str], trace: Trace | None, why: str) -> Stack:
    """Return the smallest module that holds some lists and runs once, as a stack of one layer.

    Raises:
        ValueError: there is none but the model itself.
    """
    parents = [name.split(".")[:-1] for name in names]
    levels = zip(*parents, strict=False)
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, levels)]
    while common:
        module = model.get_submodule(".".join(common))
        runs = trace is None or trace.returns.count(module) == 1
        if runs and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            return Stack((module,), why)
        common.pop()
    raise ValueError(f"{type(model).__name__} has no list of two or more layers; {_HOW}")


def find_cuts(
    model: nn.Module, at: At, trace: Trace | None = None
) -> tuple[Layers, tuple[int, ...]]:
    """Return the layer stack, and for each block but the first its first layer's index there.

    Args:
        model: the module itself.
        at: the cuts, as `blocks.split` takes them. "auto" gives the two cuts that `split` chooses
            between; only the second of a stack that cannot be cut inside.
        trace: a forward pass, if there is one.

    Raises:
        TypeError, ValueError: as `blocks.split` does for `at`.
    """
    wanted, found = _wanted(at), _named(model, at)
    lists = (model.get_submodule(name) for name, _ in found.values())
    named = next((Stack(tuple(layers.children())) for layers in lists), None)
    stack = named or find_stack(model, trace)
    n = len(stack.layers)
    if at == "auto":
        return stack.layers, (n,) if n == 1 else (n - max(1, n // 8), n)
    cuts: list[int] = []
    for item in wanted:
        if item == HEAD:
            cut = n
        elif isinstance(item, int):
            cut = item + n if item < 0 else item
            if not 0 < cut < n:
                raise ValueError(_out_of_range(model, at, stack))
        else:
            cut = _cut(item, found)
        cuts.append(cut)
    if not cuts or cuts != sorted(set(cuts)):
        raise ValueError(f"at is {at!r}; name each block's first layer but block 1's, in order")
    return stack.layers, tuple(cuts)


def _out_of_range(model: nn.Module, at: object, stack: Stack) -> str:
    n = len(stack.layers)
    if n > 1:
        return (
            f"at is {at}, but the stack has {n} layers and each block needs one; pass an"
            f" int from 1 to {n - 1}, or from {1 - n} to -1, or 'head'"
        )
    return (
        f"at is {at}, but {type(model).__name__} cannot be cut inside its layers: {stack.whole};"
        " pass 'head'"
    )


def _wanted(at: At) -> list[int | str]:
    wanted = list(at) if isinstance(at, Sequence) and not isinstance(at, str) else [at]
    for item in wanted:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise TypeError(
                f"at is {at!r}; pass 'auto', a layer's index, its qualified name, 'head', or a"
                " sequence of them"
            )
    return wanted


def _named(model: nn.Module, at: At) -> dict[str, tuple[str, int]]:
    """Return for each name in `at` the name of the list that holds the layer, and its index."""
    names = [item for item in _wanted(at) if isinstance(item, str)]
    return {name: _find_layer(model, name) for name in names if name not in ("auto", HEAD)}


def _cut(name: str, found: Mapping[str, tuple[str, int]]) -> int:
    if name not in found:
        raise ValueError(f"'auto' stands for all cuts; {_HOW}")
    stack, cut = found[name]
    if stack != next(iter(found.values()))[0]:
        raise ValueError(f"at names {name!r}, a layer of another stack than the first; {_HOW}")
    return cut


def _find_layer(model: nn.Module, at: str) -> tuple[str, int]:
    """Return the name of the list that holds the layer named `at`, and the layer's index there."""
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
    return parent, cut

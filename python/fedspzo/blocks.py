"""Cut a model into consecutive blocks, at layers of its stack of layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .capture import Touched, evaluating

Named = tuple[tuple[str, nn.Parameter], ...]

HEAD = "head"

_HOW = (
    "pass at='NAME' with the qualified name of block 2's first layer, an entry of an nn.ModuleList"
    " or nn.Sequential that the model runs in order (see model.named_modules())"
)


@dataclass(frozen=True, eq=False)
class Blocks:
    """A model cut into blocks.

    Attributes:
        model: the module itself (inside DistributedDataParallel or torch.compile's wrapper).
        layers: the layers before the last cut, in order: captured and replayed. Empty for one
            block.
        groups: per block, the (name, parameter) pairs that train, each storage once.
        ends: per block but the last, how many of `layers` are before its end.
    """

    model: nn.Module
    layers: tuple[nn.Module, ...]
    groups: tuple[Named, ...]
    ends: tuple[int, ...] = ()

    @classmethod
    def single(cls, model: nn.Module) -> Blocks:
        """The whole model as one block, with nothing to replay: MeZO's form.

        Raises:
            ValueError: no parameter of the model requires a gradient.
        """
        model = unwrap(model)
        blocks = cls(model, (), (trainable(model.named_parameters()),))
        if not blocks.groups[0]:
            raise ValueError("model has no parameter with requires_grad=True; unfreeze some")
        return blocks

    def param_groups(self) -> list[dict[str, Any]]:
        """The blocks as torch param groups of named parameters, with `block` 1, 2 and so on."""
        return [
            {"params": list(named), "block": number} for number, named in enumerate(self.groups, 1)
        ]


def split(
    model: nn.Module,
    at: int | str | Sequence[int | str] = "auto",
    *,
    example: Mapping[str, Any] | None = None,
) -> Blocks:
    """Cut `model` into consecutive blocks.

    Block 1 holds the layers before the first cut and every parameter that the model uses up to
    there (embeddings, also those tied to the head), and so on; the last block holds the rest
    (final norm, head). What is used where is found out by running the model up to the last cut on
    `example`, or on a few made-up tokens when it is a Hugging Face model of `input_ids`. For other
    models the order of registration decides, and `SPZO` checks it in its first step.

    Args:
        model: a model with a stack of layers. Freeze what must not train before you split it.
        at: the first layer of block 2, or of every block but the first: an index in the stack
            (negative: from the end), a layer's qualified name (a unique ending of it will do, so
            wrappers need no spelling out), or "head" for what comes after the stack. "auto":
            block 2 is the last eighth of the layers, at least one, with the head; where those
            layers train, and a weight matrix of the head that is not tied to an earlier one,
            the head is block 3.
        example: keyword arguments of one forward pass.

    Raises:
        TypeError: `at` is neither an int nor a string nor a sequence of them.
        ValueError: no stack, several stacks, `at` out of range or order, or a block without
            trainable parameters; the message tells what to pass.
    """
    model = unwrap(model)
    stack, cuts = _cuts(model, at)
    before = _used_before(model, stack, cuts, example)
    groups = _grouped(model, before)
    if at == "auto":
        _, last, head = groups
        if not last or not any(parameter.dim() > 1 for _, parameter in head):
            groups, cuts = _grouped(model, before[:-1]), cuts[:-1]
    for number, group in enumerate(groups, 1):
        if not group:
            raise ValueError(
                f"block {number} of the cut at={at!r} has no parameter with requires_grad=True;"
                " unfreeze some, cut elsewhere, or pass Blocks.single(model) for one block"
            )
    return Blocks(model, stack[: cuts[-1]], groups, cuts)


def _grouped(model: nn.Module, before: Sequence[set[str]]) -> tuple[Named, ...]:
    """The parameters that train, by block, each in the order of registration.

    Args:
        before: for every cut, the names of all parameters that are used before it.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    block = {
        storage(every[name]): number
        for number in reversed(range(len(before)))
        for name in before[number]
    }
    groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(len(before) + 1)]
    for name, parameter in trainable(model.named_parameters()):
        groups[block.get(storage(parameter), len(before))].append((name, parameter))
    return tuple(tuple(group) for group in groups)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel's, DistributedDataParallel's and torch.compile's wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def storage(tensor: Tensor) -> tuple[Any, ...]:
    """What tells two tensors over the same memory from two tensors: tied weights compare equal."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.shape)


def trainable(named: Iterable[tuple[str, nn.Parameter]]) -> Named:
    """The parameters that require a gradient, each storage once, under its first name."""
    kept: dict[tuple[Any, ...], tuple[str, nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            kept.setdefault(storage(parameter), (name, parameter))
    return tuple(kept.values())


def find_stack(model: nn.Module) -> tuple[nn.Module, ...]:
    """The model's stack of layers: its largest list of modules of one class.

    Raises:
        ValueError: there is none, or several of like size.
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


def _cuts(
    model: nn.Module, at: int | str | Sequence[int | str]
) -> tuple[tuple[nn.Module, ...], tuple[int, ...]]:
    """The stack of layers, and the index there of each block's first layer but block 1's."""
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
    """The list that holds the layer named `at`, and the layer's index there."""
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


def _used_before(
    model: nn.Module,
    stack: tuple[nn.Module, ...],
    cuts: tuple[int, ...],
    example: Mapping[str, Any] | None,
) -> list[set[str]]:
    """For every cut, the names of all parameters that the model uses before it."""
    every = dict(model.named_parameters(remove_duplicate=False))
    if example is None:
        example = _made_up(model)
    touched = None
    if example is not None:
        touched = _run_to(model, [stack[cut - 1] for cut in cuts], example)
    if touched is None:
        touched = [_registered_before(model, stack[0], set(every))] * len(cuts)
    used = []
    for cut, names in zip(cuts, touched, strict=True):
        owned = {id(p) for layer in stack[:cut] for p in layer.parameters()}
        used.append(names | {name for name, p in every.items() if id(p) in owned})
    return used


class _Reached(Exception):
    """The forward pass has come to the last cut."""


def _run_to(
    model: nn.Module, ends: Sequence[nn.Module], example: Mapping[str, Any]
) -> list[set[str]] | None:
    """The parameters used until each of `ends` returns; None where the model does not run."""

    def stop(*_: Any) -> None:
        raise _Reached

    every = dict(model.named_parameters(remove_duplicate=False))
    touched = [Touched(every, until=end) for end in ends]
    problem = "never came to the cut"
    try:
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            for record in touched:
                stack.enter_context(record)
            stack.callback(ends[-1].register_forward_hook(stop).remove)
            model(**example)
    except _Reached:
        return [record.names for record in touched]
    except Exception as error:
        # any failure of foreign model code on made-up input: told, and decided the other way
        problem = f"failed: {error}"
    warnings.warn(
        f"a forward pass of {type(model).__name__} {problem}; its blocks follow the order of"
        " registration. Pass example=BATCH to follow the order of execution",
        stacklevel=4,
    )
    return None


def _made_up(model: nn.Module) -> dict[str, Tensor] | None:
    """A few tokens for a Hugging Face model of `input_ids`; None for another model."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", None) != "input_ids":
        return None
    device = next(model.parameters()).device
    token = getattr(config, "vocab_size", 2) // 2  # special tokens stand at the ends
    ids = torch.full((1, 4), token, device=device)
    if getattr(config, "is_encoder_decoder", False):
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def _registered_before(model: nn.Module, layer: nn.Module, names: set[str]) -> set[str]:
    """The parameters outside the stack that are registered before its first layer."""
    order = {id(module): i for i, module in enumerate(model.modules())}
    return {
        name
        for name in names
        if order[id(model.get_submodule(name.rpartition(".")[0]))] < order[id(layer)]
    }

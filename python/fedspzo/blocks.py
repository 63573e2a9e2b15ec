"""Cut a model into two consecutive blocks, at a layer of its stack of layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .capture import Touched, evaluating

Named = tuple[tuple[str, nn.Parameter], ...]

_HOW = (
    "pass at='NAME' with the qualified name of block 2's first layer, an entry of an nn.ModuleList"
    " or nn.Sequential that the model runs in order (see model.named_modules())"
)


@dataclass(frozen=True, eq=False)
class Blocks:
    """A model cut into blocks.

    Attributes:
        model: the module itself (inside DistributedDataParallel or torch.compile's wrapper).
        layers: the layers of block 1, in order: captured and replayed. Empty for one block.
        groups: per block, the (name, parameter) pairs that train, each storage once.
    """

    model: nn.Module
    layers: tuple[nn.Module, ...]
    groups: tuple[Named, ...]

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
        """The blocks as torch param groups of named parameters, with `block` 1, 2."""
        return [
            {"params": list(named), "block": number} for number, named in enumerate(self.groups, 1)
        ]


def split(
    model: nn.Module, at: int | str = "auto", *, example: Mapping[str, Any] | None = None
) -> Blocks:
    """Cut `model` into two consecutive blocks.

    Block 1 holds the layers before the cut and every parameter that the model uses up to there
    (embeddings, also those tied to the head); block 2 holds the rest (final norm, head). What is
    used where is found out by running the model up to the cut on `example`, or on a few made-up
    tokens when it is a Hugging Face model of `input_ids`. For other models the order of
    registration decides, and `SPZO` checks it in its first step.

    Args:
        model: a model with a stack of layers. Freeze what must not train before you split it.
        at: block 2's first layer: "auto" (the last eighth of the layers, at least one, with the
            final norm and the head), an index in the stack (negative: from the end), or a
            layer's qualified name (a unique ending of it will do, so wrappers need no spelling
            out).
        example: keyword arguments of one forward pass.

    Raises:
        TypeError: `at` is neither an int nor a string.
        ValueError: no stack, several stacks, `at` out of range, or a block without trainable
            parameters; the message tells what to pass.
    """
    model = unwrap(model)
    if isinstance(at, bool) or not isinstance(at, int | str):
        raise TypeError(f"at is {at!r}; pass 'auto', a layer's index or its qualified name")
    if isinstance(at, str) and at != "auto":
        stack, cut = _find_layer(model, at)
    else:
        stack = find_stack(model)
        n = len(stack)
        cut = n - max(1, n // 8) if isinstance(at, str) else at
        cut += n if cut < 0 else 0
        if not 0 < cut < n:
            raise ValueError(
                f"at is {at}, but the stack has {n} layers and each block needs one; pass an int"
                f" from 1 to {n - 1}, or from {1 - n} to -1"
            )
    layers = stack[:cut]
    names = _first_block(model, stack, cut, example)
    every = dict(model.named_parameters(remove_duplicate=False))
    first = {storage(every[name]) for name in names}
    groups: tuple[list[tuple[str, nn.Parameter]], ...] = ([], [])
    for name, parameter in trainable(model.named_parameters()):
        groups[storage(parameter) not in first].append((name, parameter))
    for number, group in enumerate(groups, 1):
        if not group:
            raise ValueError(
                f"block {number} of the cut at={at!r} has no parameter with requires_grad=True;"
                " unfreeze some, cut elsewhere, or pass Blocks.single(model) for one block"
            )
    return Blocks(model, layers, (tuple(groups[0]), tuple(groups[1])))


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


def _first_block(
    model: nn.Module, stack: tuple[nn.Module, ...], cut: int, example: Mapping[str, Any] | None
) -> set[str]:
    """The names of all parameters that the model uses before layer `cut` of the stack."""
    every = dict(model.named_parameters(remove_duplicate=False))
    owned = {id(p) for layer in stack[:cut] for p in layer.parameters()}
    inside = {name for name, p in every.items() if id(p) in owned}
    if example is None:
        example = _made_up(model)
    if example is not None:
        touched = _run_to(model, stack[cut - 1], example)
        if touched is not None:
            return inside | touched
    return inside | _registered_before(model, stack[0], set(every))


class _Reached(Exception):
    """The forward pass has come to the cut."""


def _run_to(model: nn.Module, last: nn.Module, example: Mapping[str, Any]) -> set[str] | None:
    def stop(*_: Any) -> None:
        raise _Reached

    touched = Touched(dict(model.named_parameters(remove_duplicate=False)))
    handle = last.register_forward_hook(stop)
    try:
        with evaluating(model), torch.no_grad(), touched:
            model(**example)
    except _Reached:
        return touched.names
    except Exception as error:
        # any failure of foreign model code on made-up input: told, and decided the other way
        problem = f"failed: {error}"
    else:
        problem = "never came to the cut"
    finally:
        handle.remove()
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

"""Cut a model into blocks, at layers of its layer stack."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .evaluation_mode import evaluating
from .layer_stack import find_cuts
from .output_rows import untie_rows
from .parameters import Named, storage, trainable
from .shards import gathering_modules, reshard
from .touched import Touched

At = int | str | Sequence[int | str]


@dataclass(frozen=True, eq=False)
class Blocks:
    """A model that is cut into blocks.

    Attributes:
        model: the module itself (inside DistributedDataParallel or torch.compile's wrapper).
        layers: the layers before the last cut, in order; they are captured and replayed. Empty
            for one block.
        groups: for each block, the (name, parameter) pairs that train, each storage once.
        starts: for each block but the first, the number of `layers` that its evaluations replay.
    """

    model: nn.Module
    layers: tuple[nn.Module, ...]
    groups: tuple[Named, ...]
    starts: tuple[int, ...] = ()

    @classmethod
    def single(cls, model: nn.Module) -> Blocks:
        """Return the whole model as one block, with nothing to replay. This is MeZO's form.

        Raises:
            ValueError: no parameter of the model requires a gradient.
        """
        model = unwrap(model)
        reshard(gathering_modules(model))
        blocks = cls(model, (), (trainable(model.named_parameters()),))
        if not blocks.groups[0]:
            raise ValueError("model has no parameter with requires_grad=True; unfreeze some")
        return blocks

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the blocks as torch param groups: named parameters, and `block` 1, 2 and so on.

        Each name gives the parameter that the model has there now: fully_shard replaces them.
        """
        reshard(gathering_modules(self.model))
        now = dict(self.model.named_parameters(remove_duplicate=False))
        return [
            {"params": [(name, now.get(name, p)) for name, p in named], "block": number}
            for number, named in enumerate(self.groups, 1)
        ]


def split(
    model: nn.Module,
    at: At = "auto",
    *,
    example: Mapping[str, Any] | None = None,
    rows: Sequence[int] | None = None,
) -> Blocks:
    """Cut `model` into consecutive blocks.

    Block 1 holds the layers before the first cut and every parameter that the model uses up to
    there (embeddings, also those tied to the head), and so on. The last block holds the rest
    (final norm, head).

    To see which parameters are used before a cut, the model is run up to the last cut: on
    `example`, or on a few made-up tokens if it is a Hugging Face model of `input_ids`. For other
    models the order of registration decides, and `SPZO` checks it in its first step.

    Args:
        model: a model with a layer stack. Freeze what must not train before you split it.
        at: the first layer of block 2, or a sequence with the first layer of every block but the
            first. A layer is an index in the stack (negative: from the end), a qualified name (a
            unique ending of it will do, so wrappers need no spelling out), or "head" for what
            comes after the stack. With "auto" (default) block 2 is the head if a weight matrix of
            it trains that is not tied to an earlier one; else it is the last eighth of the
            layers, at least one, with the head.
        example: keyword arguments of one forward pass.
        rows: the numbers of the tokens that answer a prompt, for a Hugging Face language model.
            Their rows of the output layer become parameters of their own, in the last block
            (`blocks.output_rows`). This changes the model; before you save it, call `merge_rows`.
            Default: none.

    Raises:
        TypeError: `at` is neither an int nor a string nor a sequence of them.
        ValueError: there is no layer stack or there are several, `at` is out of range or order,
            or a block has no trainable parameter; the message tells what to pass.
    """
    model = unwrap(model)
    reshard(gathering_modules(model))
    if rows is not None:
        untie_rows(model, rows)
    stack, cuts = find_cuts(model, at)
    before = _used_before(model, stack, cuts, example)
    if at == "auto":
        head = _grouped(model, before)[-1]
        kept = slice(1, None) if any(p.dim() > 1 for _, p in head) else slice(1)
        before, cuts = before[kept], cuts[kept]
    groups = _grouped(model, before)
    for number, group in enumerate(groups, 1):
        if not group:
            raise ValueError(
                f"block {number} of the cut at={at!r} has no parameter with requires_grad=True;"
                " unfreeze some, cut elsewhere, or pass Blocks.single(model) for one block"
            )
    return Blocks(model, stack[: cuts[-1]], groups, cuts)


def _grouped(model: nn.Module, before: Sequence[set[str]]) -> tuple[Named, ...]:
    """Return each block's parameters that train, in the order of registration.

    Args:
        model: the module itself.
        before: for each block but the last, the names of all its own and earlier parameters.
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
    """Return the module inside the wrappers of torch.nn.parallel and torch.compile.

    Raises:
        ValueError: the model is a DataParallel over several devices.
    """
    while True:
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError(
                f"model is a DataParallel over devices {model.device_ids}, whose replicas would run"
                " the first one's layers; pass model.module, and compute the loss with that"
            )
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _used_before(
    model: nn.Module,
    stack: tuple[nn.Module, ...],
    cuts: tuple[int, ...],
    example: Mapping[str, Any] | None,
) -> list[set[str]]:
    """Return for every cut the names of all parameters that the model uses before it."""
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
    """Ends a forward pass that has come to the last cut."""


def _run_to(
    model: nn.Module, ends: Sequence[nn.Module], example: Mapping[str, Any]
) -> list[set[str]] | None:
    """Run the model, and return the names of the parameters used until each of `ends` returns.

    Returns None, with a warning, if the model does not run to the last of them.
    """

    def stop(*_: Any) -> None:
        raise _Reached

    every = dict(model.named_parameters(remove_duplicate=False))
    touched = [Touched(every, until=end, model=model) for end in ends]
    problem = "never came to the cut"
    gathering = gathering_modules(model)  # their forward passes must not break off
    try:
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            for record in touched:
                stack.enter_context(record)
            if not gathering:
                stack.callback(ends[-1].register_forward_hook(stop).remove)
            stack.callback(reshard, gathering)
            model(**example)
        if all(record.done for record in touched):
            return [record.names for record in touched]
    except _Reached:
        return [record.names for record in touched]
    except Exception as error:
        # foreign model code may fail in any way on made-up input; registration decides then
        problem = f"failed: {error}"
    warnings.warn(
        f"a forward pass of {type(model).__name__} {problem}; its blocks follow the order of"
        " registration. Pass example=BATCH to follow the order of execution",
        stacklevel=4,
    )
    return None


def _made_up(model: nn.Module) -> dict[str, Tensor] | None:
    """Make up a few tokens for a Hugging Face model of `input_ids`; None for another model."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", None) != "input_ids":
        return None
    device = next(model.parameters()).device
    token = getattr(config, "vocab_size", 2) // 2  # special tokens are at the ends
    ids = torch.full((1, 4), token, device=device)
    if getattr(config, "is_encoder_decoder", False):
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def _registered_before(model: nn.Module, layer: nn.Module, names: set[str]) -> set[str]:
    """Return the names of the parameters that are registered before a layer."""
    order = {id(module): i for i, module in enumerate(model.modules())}
    return {
        name
        for name in names
        if order[id(model.get_submodule(name.rpartition(".")[0]))] < order[id(layer)]
    }

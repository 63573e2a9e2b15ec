"""Cut a model into blocks, at layers of its layer stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .activation_replay import ActivationReplay
from .layer_stack import At, find_cuts, modules_to_trace
from .output_rows import untie_rows
from .parameters import Named, storage, trainable
from .shards import gathering_modules, reshard
from .side_modules import modules_beside
from .trace import trace
from .uses import Uses


@dataclass(frozen=True, eq=False)
class Blocks:
    """A model that is cut into blocks.

    Attributes:
        model: the module itself (inside DistributedDataParallel or torch.compile's wrapper).
        layers: the layers before the last cut, in order; they are captured and replayed. Empty
            if there is nothing to replay.
        groups: for each block, the (name, parameter) pairs that train, each storage once.
        starts: for each block but the first, the number of `layers` that its evaluations replay.
        frozen: number of leading `layers` before which, and in which, nothing trains. They run once
            a step, and every other evaluation replays them.
        beside: modules outside the layers, such as an encoder, that run before a cut. With each is
            the number of the last block that it has parameters of; 0 if none of them trains.
    """

    model: nn.Module
    layers: tuple[nn.Module, ...]
    groups: tuple[Named, ...]
    starts: tuple[int, ...] = ()
    frozen: int = 0
    beside: tuple[tuple[nn.Module, int], ...] = ()

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

    def replay(self, *, joint: bool = False) -> ActivationReplay:
        """Return what captures and replays the activations before the cuts.

        Args:
            joint: all blocks move together, so that only what is frozen is replayed.
        """
        if not joint:
            return ActivationReplay(self.layers, self.starts, self.frozen, self.beside)
        frozen = [(module, block) for module, block in self.beside if self.frozen and not block]
        return ActivationReplay(self.layers[: self.frozen], (), self.frozen, frozen)

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
    (final norm, head). With "auto" a head's weight matrices before its output layer, such as a
    pooler's, belong to block 1 too, as the noise of a last block grows with its size
    (docs/results.md).

    The layer stack is the model's largest list of layers, the decoder's of an encoder-decoder, the
    text's beside an image's, and of several others the one that runs last. To see what runs and
    which parameters are used before a cut, the model is run once: on `example`, or on a few tokens,
    an image or a sound made up for a Hugging Face model. For other models the order of registration
    decides, and `SPZO` checks it in its first step.

    What is frozen before the first parameter that trains is in no block. It runs once a step.

    Args:
        model: a model with a layer stack. Freeze what must not train before you split it.
        at: the first layer of block 2, or a sequence with the first layer of every block but the
            first. A layer is an index in the stack (negative: from the end), a qualified name (a
            unique ending of it will do, so wrappers need no spelling out), or "head" for what
            comes after the stack. With "auto" (default) block 2 is the head's output layer, with
            the norms before it, if a weight matrix of the head trains that is not tied to an
            earlier one; else it is the last eighth of the layers, at least one, with the head.
        example: keyword arguments of one forward pass.
        rows: the numbers of the tokens that answer a prompt, for a Hugging Face language model.
            Their rows of the output layer become parameters of their own, in the last block
            (`blocks.output_rows`). This changes the model; before you save it, call `merge_rows`.
            Default: none.

    Raises:
        TypeError: `at` is neither an int nor a string nor a sequence of them.
        ValueError: there is no layer stack, or there are several and no `example`; `at` is out of
            range or order; or a block has no trainable parameter. The message tells what to pass.
    """
    model = unwrap(model)
    reshard(gathering_modules(model))
    if rows is not None:
        untie_rows(model, rows)
    record = trace(model, modules_to_trace(model, at), example)
    stack, cuts = find_cuts(model, at, record)
    uses = Uses(model, stack, record)
    before = [uses.before(cut) for cut in cuts]
    if at == "auto" and len(cuts) > 1:
        head = _grouped(model, before)[-1]
        kept = slice(1, None) if any(p.dim() > 1 for _, p in head) else slice(1)
        before, cuts = before[kept], cuts[kept]
    groups = _grouped(model, before)
    if at == "auto" and cuts[-1] == len(stack) and groups[0]:
        before[-1] |= _before_output_layer(model, uses.in_order(groups[-1]))
        groups = _grouped(model, before)
    frozen = uses.frozen()
    if frozen:  # training begins after these layers, and block 1 with it
        first = next((number for number, group in enumerate(groups) if group), 0)
        groups, cuts = groups[first:], cuts[first:]
    for number, group in enumerate(groups, 1):
        if not group:
            raise ValueError(
                f"block {number} of the cut at={at!r} has no parameter with requires_grad=True;"
                " unfreeze some, cut elsewhere, or pass Blocks.single(model) for one block"
            )
    layers = stack[: max((frozen, *cuts))]
    return Blocks(model, layers, groups, cuts, frozen, modules_beside(model, stack, groups))


def _before_output_layer(model: nn.Module, head: Named) -> set[str]:
    """Return the names of the parameters of a head's layers with weight matrices but the last.

    Args:
        model: the module itself.
        head: the head's (name, parameter) pairs, in the order in which the model uses them.
    """
    layers = {name: _layer(model, name) for name, _ in head}
    matrices = [layers[name] for name, parameter in head if parameter.dim() > 1]
    return {name for name, layer in layers.items() if layer in matrices and layer != matrices[-1]}


def _layer(model: nn.Module, name: str) -> str:
    """Return the name of the module that has a parameter; an adapter's is the layer it adapts."""
    parts = name.split(".")[:-1]
    above = (".".join(parts[:end]) for end in range(1, len(parts)))
    adapted = (path for path in above if hasattr(model.get_submodule(path), "base_layer"))
    return next(adapted, ".".join(parts))


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

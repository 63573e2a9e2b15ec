"""Replay of modules beside the layer stack: encoders, vision towers, projectors.

What such a module returns follows from its input and its parameters. In an evaluation in which its
parameters are where they were when it was captured, it returns what it returned then, if its input
is the same too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only

from .parameters import Named, storage
from .shadow import Forward, shadowed

Beside = Sequence[tuple[nn.Module, int]]

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


def modules_beside(
    model: nn.Module, stack: Sequence[nn.Module], groups: Sequence[Named]
) -> tuple[tuple[nn.Module, int], ...]:
    """Return the modules that stand beside a layer stack, not inside of one another.

    Embeddings and norms are left out, as they cost no more than a comparison of their inputs.

    Args:
        model: the model.
        stack: its layers.
        groups: each block's (name, parameter) pairs.

    Returns:
        The modules that block 1's cut can come after. With each is the number of the last block
        that it has parameters of; 0 if none of them trains.
    """
    block_of = {storage(p): number for number, group in enumerate(groups, 1) for _, p in group}
    found = []
    for module in _beside(model, {m for layer in stack for m in layer.modules()}):
        blocks = [block_of.get(storage(p), 0) for p in module.parameters()]
        if max(blocks) < len(groups):
            found.append((module, max(blocks)))
    return tuple(found)


def _beside(module: nn.Module, stack: set[nn.Module]) -> Iterator[nn.Module]:
    for child in module.children():
        if child in stack:
            continue
        is_list = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if is_list or not stack.isdisjoint(child.modules()):
            yield from _beside(child, stack)
        elif any(_multiplies(part) for part in child.modules()):
            yield child


def _multiplies(module: nn.Module) -> bool:
    """Tell whether a module has a weight matrix of its own, and not to look up rows in it."""
    own = module.parameters(recurse=False)
    return not isinstance(module, nn.Embedding) and any(p.dim() > 1 for p in own)


@dataclass(frozen=True)
class _Call:
    """One call of a module.

    Attributes:
        inputs: its arguments' leaves; tensors with their versions, as they may change in place.
        spec: the arguments' form.
        output: a copy of what it returned.
    """

    inputs: list[tuple[Any, int | None]]
    spec: TreeSpec
    output: Any

    def takes(self, leaves: Sequence[Any], spec: TreeSpec) -> bool:
        """Tell whether arguments are those of this call, bit for bit."""
        return spec == self.spec and all(
            _same(old, version, new)
            for (old, version), new in zip(self.inputs, leaves, strict=True)
        )


def _same(old: Any, version: int | None, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        # a virtual parameter moves without a new version
        if _version(old) != version or not {type(old), type(new)} <= {Tensor, nn.Parameter}:
            return False
        alike = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
        return old is new or (alike and torch.equal(old, new))
    return old is new or (isinstance(old, _PLAIN) and type(old) is type(new) and old == new)


def _version(leaf: Any) -> int | None:
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else None


class SideReplay:
    """Shadows the `forward` of modules beside a layer stack inside a `with` block.

    Args:
        beside: each module, with the number of the last block that it has parameters of; 0 if none
            of them trains.
        reached: tells whether the evaluation has come to the last cut. A module that is first
            called after it is not captured.

    Attributes:
        unmoved: number of leading blocks that have not moved since they were captured; None: the
            modules run as they are. What is frozen counts as block 0.
        depends: tells whether inputs depend on parameters that train, while it is known.
    """

    def __init__(self, beside: Beside, reached: Callable[[], bool]) -> None:
        self._modules = [module for module, _ in beside]
        self._blocks = [block for _, block in beside]
        self._reached = reached
        self._calls: list[dict[int, _Call]] = [{} for _ in self._modules]  # by their order
        self._called = [0] * len(self._modules)
        self._late = [False] * len(self._modules)
        self.unmoved: int | None = None
        self.depends: Callable[[Sequence[Any]], bool] | None = None
        self._shadows = ExitStack()

    def __enter__(self) -> SideReplay:
        for index, module in enumerate(self._modules):
            self._shadows.enter_context(shadowed(module, self._shadow(index)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._shadows.close()
        self.unmoved = None
        for calls in self._calls:
            calls.clear()

    @property
    def has_frozen(self) -> bool:
        """Nothing trains in some module."""
        return not all(self._blocks)

    @property
    def captured_frozen(self) -> bool:
        """Some module in which nothing trains was captured."""
        return any(
            calls and not block for calls, block in zip(self._calls, self._blocks, strict=True)
        )

    def begin(self, unmoved: int | None) -> None:
        """Begin an evaluation, in which the first `unmoved` blocks have not moved; 0: capture anew.

        None: the modules run as they are, and what was captured stays.
        """
        self.unmoved = unmoved
        self._called = [0] * len(self._modules)
        if unmoved == 0:
            for calls, block in zip(self._calls, self._blocks, strict=True):
                if block:
                    calls.clear()

    def _shadow(self, index: int) -> Callable[[Forward], Forward]:
        def shadow(forward: Forward) -> Forward:
            def replayed(*args: Any, **kwargs: Any) -> Any:
                if self.unmoved is None:
                    return forward(*args, **kwargs)
                number = self._called[index]
                self._called[index] += 1
                leaves, spec = tree_flatten((args, kwargs))
                known = (
                    self._calls[index].get(number) if self._blocks[index] <= self.unmoved else None
                )
                if known is not None and known.takes(leaves, spec):
                    return _copy(known.output)
                if self.depends is not None and self.depends(leaves):
                    # what it computes moves with block 1, though no weight of its own does
                    self._blocks[index] = max(1, self._blocks[index])
                inputs = [(leaf, _version(leaf)) for leaf in leaves]
                output = forward(*args, **kwargs)
                if number == 0:
                    self._late[index] = self._reached()
                if not self.unmoved and not self._late[index] and _is_plain(output):
                    self._calls[index][number] = _Call(inputs, spec, _copy(output))
                return output

            return replayed

        return shadow


def _is_plain(output: Any) -> bool:
    """Tell whether an output holds tensors and constants alone, so that its copy is as good."""
    return all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in tree_leaves(output))


def _copy(output: Any) -> Any:
    """Copy the tensors of an output, as the model may change it in place."""
    return tree_map_only(Tensor, torch.clone, output)

"""Layerwise evaluation: evaluate losses at perturbed weights without writing the weights.

During a step a `VirtualParameter` takes the place of every trainable parameter in its modules. A
model may also use a parameter past its modules, as in a list that it keeps beside them. The first
evaluation finds such a parameter and names it in a warning; from then on it is moved in place,
from a copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

from torch import Tensor, nn

from fedspzo.blocks.evaluation_mode import eager
from fedspzo.blocks.every_module import every_module
from fedspzo.blocks.layer_stack import find_stack
from fedspzo.blocks.parameters import storage
from fedspzo.blocks.shards import is_sharded
from fedspzo.blocks.touched import Touched
from fedspzo.choices import Stream

from .layerwise_block import LayerwiseBlock
from .scratch_buffer import ScratchBuffer, footprint
from .virtual_parameter import VirtualParameter

Named = Sequence[tuple[str, Tensor]]

MIN_SCRATCH_BYTES = 1 << 20
"""The smallest default of the scratch buffer, in bytes: smaller parts cost more than they save."""

_WITHOUT_MODEL = "came without their model (pass Blocks.single(model))"


class Layerwise:
    """Evaluates a model at perturbed weights that exist one operation at a time.

    Args:
        model: the model whose modules hold the parameters. None: all parameters are moved in
            place, from a copy.
        scratch_bytes: largest size of the buffer that holds the perturbed copies, in bytes.
        stream: the noise stream.
    """

    def __init__(self, model: nn.Module | None, scratch_bytes: int, stream: Stream) -> None:
        self._model, self._stream = model, stream
        self._scratch = ScratchBuffer(scratch_bytes)
        # the names of the parameters that are used past their modules, once they are known
        self._stray: set[str] | None = None
        self._groups: Sequence[Named] = ()
        self._blocks: list[LayerwiseBlock] = []
        self._in_place: set[str] = set()
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        # by name: they are kept from step to step, without the weights
        self._virtual: dict[str, VirtualParameter] = {}
        self._bound: list[VirtualParameter] = []

    @property
    def knows_strays(self) -> bool:
        """An evaluation has shown which parameters are used past their modules."""
        return self._stray is not None

    @contextmanager
    def virtual_parameters(
        self, groups: Sequence[Named], copied: Named = ()
    ) -> Iterator[list[LayerwiseBlock]]:
        """Put virtual parameters into the parameters' places inside the `with` block.

        Args:
            groups: each block's (name, parameter) pairs.
            copied: those of them that stay in their places, and are moved there. Default: none.

        Yields:
            The blocks, each of which can be moved.
        """
        every = [pair for group in groups for pair in group]
        sharded = any(is_sharded(tensor) for _, tensor in every)
        if self._stray is None and (sharded or self._model is None):
            why = "are sharded" if sharded else _WITHOUT_MODEL
            self._found({name for name, _ in every}, why)
        self._groups, self._blocks = groups, []
        self._in_place = {name for name, _ in copied}
        try:
            for group in groups:
                stays = self._copied(group)
                self._blocks.append(LayerwiseBlock(self._scratch, stays, self._stream))
            self._put()
            with eager():  # a compiler cannot trace virtual parameters
                yield self._blocks
        finally:
            self._take_away()
            for block in self._blocks:
                block.restore()
            self._scratch.free()

    def watched(self, evaluate: Callable[[], Tensor], again: Callable[[], None]) -> Tensor:
        """Return the loss; the first evaluation of all also finds the stray parameters.

        Args:
            evaluate: returns the loss.
            again: called before the evaluation is repeated, which it is if some were found.
        """
        if self._stray is not None:
            return evaluate()
        virtual = (
            pair for group in self._groups for pair in group if pair[0] not in self._in_place
        )
        stray = _Stray(dict(virtual))
        self._scratch.aside = stray.aside
        try:
            with stray:
                loss = evaluate()
        finally:
            self._scratch.aside = nullcontext
        self._found(stray.names, "are used past their modules' own places for them")
        if not stray.names:
            return loss
        self._take_away()
        self._put()
        for group, block in zip(self._groups, self._blocks, strict=True):
            block.copy(self._copied(group))
        again()
        return evaluate()

    def _found(self, names: set[str], why: str) -> None:
        self._stray = names
        if names:
            first = ", ".join(repr(name) for name in sorted(names)[:8])
            rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
            warnings.warn(
                f"{first}{rest} {why}: every evaluation moves them in place, and a copy of them"
                " is kept during a step",
                stacklevel=2,
            )

    def _copied(self, group: Named) -> Named:
        return [(name, tensor) for name, tensor in group if self._stays(name)]

    def _stays(self, name: str) -> bool:
        """Tell whether a parameter stays in its place, and is moved there."""
        return name in self._in_place or name in (self._stray or ())

    def _put(self) -> None:
        parameters = {
            storage(tensor): self._of(name, tensor, block)
            for group, block in zip(self._groups, self._blocks, strict=True)
            for name, tensor in group
            if not self._stays(name)
        }
        for module in every_module(self._model) if self._model and parameters else ():
            for name, parameter in module._parameters.items():
                virtual = None if parameter is None else parameters.get(storage(parameter))
                if parameter is not None and virtual is not None:
                    self._places.append((module, name, parameter))
                    # straight into the dict: assigning would register a parameter anew
                    module._parameters[name] = cast(nn.Parameter, virtual)

    def _of(self, name: str, tensor: Tensor, block: LayerwiseBlock) -> VirtualParameter:
        """Return a parameter's virtual parameter, which moves with a block in this step."""
        known = self._virtual.get(name)
        if known is None or not known.fits(tensor):
            known = self._virtual[name] = VirtualParameter.of(name, tensor)
        known.bind(tensor, block)
        self._bound.append(known)
        return known

    def _take_away(self) -> None:
        while self._places:
            module, name, parameter = self._places.pop()
            module._parameters[name] = parameter
        while self._bound:
            self._bound.pop().release()


class _Stray(Touched):
    """Records the weights that operations are given themselves, not as virtual parameters."""

    def look(self, values: Iterable[Any]) -> None:
        super().look(value for value in values if not isinstance(value, VirtualParameter))

    @contextmanager
    def aside(self, operands: Iterable[Any]) -> Iterator[None]:
        """Record no more inside the `with` block, in which a virtual parameter reads its weight.

        Args:
            operands: what else the operation is given, which is recorded.
        """
        self.look(operands)
        self.done = True
        try:
            yield
        finally:
            self.done = False


def default_scratch(
    model: nn.Module | None, layers: Sequence[nn.Module], groups: Sequence[Named]
) -> int:
    """Return the default size of the scratch buffer, in bytes.

    It is the size of the largest module in the layer stack, at least `MIN_SCRATCH_BYTES`.

    Args:
        model: the model, or None.
        layers: some layers of its stack. Without any the stack is looked for, and every module of
            the model counts if there is none.
        groups: each block's (name, parameter) pairs.
    """
    trained = {storage(tensor) for group in groups for _, tensor in group}
    modules = [module for layer in layers or _stack(model) for module in layer.modules()]
    own = (
        [p for p in m._parameters.values() if p is not None and storage(p) in trained]
        for m in modules
    )
    return max([MIN_SCRATCH_BYTES, *map(footprint, own)])


def _stack(model: nn.Module | None) -> Sequence[nn.Module]:
    if model is None:
        return ()
    try:
        return find_stack(model).layers
    except ValueError:  # the model has no stack
        return (model,)

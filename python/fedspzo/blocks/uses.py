"""Find the parameters that a model uses up to a layer of its stack."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import takewhile

from torch import nn

from .layer_stack import Layers
from .parameters import Named, storage, trainable
from .trace import Trace


class Uses:
    """Tells which parameters a model uses up to a layer of its stack.

    Without a trace that comes to the layer the order of registration decides. `SPZO` checks it in
    its first step.

    Args:
        model: the model.
        stack: its layer stack.
        trace: a forward pass of the model, or None.
    """

    def __init__(self, model: nn.Module, stack: Layers, trace: Trace | None) -> None:
        self._model, self._told = type(model).__name__, False
        self._stack, self._trace = stack, trace
        self._every = dict(model.named_parameters(remove_duplicate=False))
        self._tied: dict[object, list[str]] = {}
        for name, parameter in self._every.items():
            self._tied.setdefault(storage(parameter), []).append(name)
        self._inside = {name for layer in stack for name in self._names(layer.parameters())}
        order = {id(module): i for i, module in enumerate(model.modules())}
        first = order[id(stack[0])]
        self._registered = {
            name
            for name in self._every
            if order[id(model.get_submodule(name.rpartition(".")[0]))] < first
        }

    def before(self, cut: int) -> set[str]:
        """Return the names of all parameters that belong before a cut.

        They are those of the layers before it, and those used before the last of these returns.
        Parameters that a whole trace leaves unused, as text does an image's encoder, count too.

        Args:
            cut: number of layers before the cut.
        """
        own = self._names(p for layer in self._stack[:cut] for p in layer.parameters())
        used = None if self._trace is None else self._trace.used_before(self._stack[cut - 1])
        if used is None:
            self._warn()
            return own | self._registered
        return own | self._names(self._every[name] for name in used) | self._unused()

    def in_order(self, named: Named) -> Named:
        """Return (name, parameter) pairs in the order in which the model first uses them.

        Without a trace it is the order of registration.
        """
        first = [] if self._trace is None else list(self._trace.first_use)
        place = {
            name: i for i, used in enumerate(first) for name in self._names([self._every[used]])
        }
        return tuple(sorted(named, key=lambda pair: place.get(pair[0], -1)))

    def frozen(self) -> int:
        """Return the number of leading layers before which, and in which, nothing trains."""
        trains = self._names(p for _, p in trainable(self._every.items()))
        counts = range(1, len(self._stack) + 1)
        # from the first on: a trace that fails on the way does not show what later layers use
        return sum(1 for _ in takewhile(lambda count: not trains & self.before(count), counts))

    def _warn(self) -> None:
        if self._trace is not None and not self._told:
            self._told = True
            warnings.warn(
                f"a forward pass of {self._model} {self._trace.problem}; its blocks follow the"
                " order of registration. Pass example=BATCH to follow the order of execution",
                stacklevel=4,
            )

    def _unused(self) -> set[str]:
        if self._trace is None or not self._trace.complete:
            return set()
        used = self._names(self._every[name] for name in self._trace.first_use)
        return self._every.keys() - used - self._inside

    def _names(self, parameters: Iterable[nn.Parameter]) -> set[str]:
        """Return all names of some parameters, also those of others that are tied to them."""
        return {name for p in parameters for name in self._tied[storage(p)]}

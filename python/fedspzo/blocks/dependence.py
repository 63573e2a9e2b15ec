"""Find the tensors whose values depend on some others, as a model computes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .memory_parts import memory_parts


class Dependence(TorchDispatchMode):
    """Follows, inside the `with` block, which tensors are computed from some others.

    Args:
        tensors: the tensors to follow.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._roots = _memories(list(tensors))
        self._reached = set(self._roots)

    def reaches(self, values: Any) -> bool:
        """Tell whether any tensor among some values, of any nesting, depends on the others."""
        return not self._reached.isdisjoint(_memories(values))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reached = self.reaches((args, kwargs))
        output = func(*args, **(kwargs or {}))
        written = _memories((output, _written(func, args, kwargs or {})))
        if reached:
            self._reached |= written
        else:  # memory that is used again
            self._reached -= written - self._roots
        return output


def _memories(values: Any) -> set[int]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    parts = (part for tensor in tensors for part in memory_parts(tensor))
    return {part.untyped_storage().data_ptr() for part in parts}


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes to: those that gather shards return nothing."""
    schema = func._schema.arguments
    return [
        args[place] if place < len(args) else kwargs.get(argument.name)
        for place, argument in enumerate(schema)
        if argument.is_write
    ]

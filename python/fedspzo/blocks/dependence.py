"""Find the tensors whose values depend on some others, as a model computes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Dependence(TorchDispatchMode):
    """Follows, inside the `with` block, which tensors are computed from some others.

    Args:
        tensors: the tensors to follow.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._roots = {_memory(t) for t in tensors}
        self._reached = set(self._roots)

    def reaches(self, values: Any) -> bool:
        """Tell whether any tensor among some values, of any nesting, depends on the others."""
        leaves = tree_leaves(values)
        return any(isinstance(leaf, Tensor) and _memory(leaf) in self._reached for leaf in leaves)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reached = self.reaches((args, kwargs))
        output = func(*args, **(kwargs or {}))
        written = {_memory(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)}
        if reached:
            self._reached |= written
        else:  # memory that is used again
            self._reached -= written - self._roots
        return output


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

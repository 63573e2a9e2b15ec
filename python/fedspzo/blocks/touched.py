"""Find the tensors that a model's operations touch, wherever the model uses them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .memory_parts import memory_parts
from .shadow import on_return
from .shards import gathering_modules, is_sharded, local


class Touched(TorchDispatchMode):
    """Records the tensors that operations inside the `with` block read or write.

    It looks at the memory that each operation is given. So it also sees a parameter that is used
    outside its own module's forward.

    Args:
        tensors: the tensors to look for, by name.
        until: the module at whose first return recording ends. Default: it ends with the block.
        model: the model. It is needed where the tensors are its sharded parameters: operations are
            then given what its modules gather.

    Attributes:
        names: the names of the tensors that were touched.
        done: recording has ended.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        until: nn.Module | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.done = False
        self._tensors = dict(tensors)
        self._gathering = gathering_modules(model)
        if self._gathering:
            self._tensors = {n: t for n, t in tensors.items() if not is_sharded(t)}
        self._sharded = tensors.keys() - self._tensors.keys()
        self._spans: list[tuple[int, int, str]] = []
        self._starts: list[int] = []
        self._lay_out()
        self._until = until
        self._watching = ExitStack()

    def _lay_out(self) -> None:
        self._spans = sorted(
            (local(t).data_ptr(), local(t).data_ptr() + local(t).nbytes, name)
            for name, t in self._tensors.items()
        )
        self._starts = [start for start, _, _ in self._spans]

    def __enter__(self) -> Touched:
        if self._until is not None:
            # a hook would not fire where a model calls the module's forward itself (SqueezeBERT)
            self._watching.enter_context(on_return(self._until, self._end))
        for prefix, module in self._gathering.items():
            look = partial(self._gathered, prefix)
            self._watching.callback(module.register_forward_pre_hook(look).remove)
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self._watching.close()

    def _gathered(self, prefix: str, module: nn.Module, _: Any) -> None:
        """Look for the parameters that a module has just gathered."""
        for name, parameter in module.named_parameters(prefix, remove_duplicate=False):
            if name in self._sharded and not is_sharded(parameter):
                self._tensors[name] = parameter
        self._lay_out()

    def _end(self, *_: Any) -> None:
        self.done = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.look(tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))

    def look(self, values: Iterable[Any]) -> None:
        """Look for the memory of those values that are tensors, unless recording has ended."""
        if self.done:
            return
        for value in values:
            if isinstance(value, Tensor):
                for part in memory_parts(value):
                    self._record(part.data_ptr())

    def _record(self, address: int) -> None:
        i = bisect_right(self._starts, address) - 1
        if i >= 0 and address < self._spans[i][1]:
            self._touch(self._spans[i][2])

    def _touch(self, name: str) -> None:
        self.names.add(name)

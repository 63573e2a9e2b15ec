"""Recorded evaluations: run again only the operations whose results the moved weights can change.

A Newton step evaluates a small last block over a hundred times on one batch. Each time the model's
Python code would run from end to end to compute a norm and a few logits. A recording keeps the
operations that depend on the block's weights, with everything else that they read, and runs them
again with the weights as they are by then. The loss has the same bits, as the operations are the
same.

A recording sees what goes through torch's dispatcher. A closure that reads a value of the moved
weights into Python, or computes with it outside torch, is evaluated in full every time. So is all
that cannot be run again: compiled code, random numbers, results of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from fedspzo.blocks.evaluation_mode import eager, has_compiled

_SELECTIONS = {torch.ops.aten.index.Tensor, torch.ops.aten.masked_select.default}
"""Operations whose first argument does not decide on the shape of the result."""

_READ = (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr, Tensor.__dlpack__)
_WAYS_OUT = {torch.tensor, *_READ}
"""Functions that read tensors, and that the dispatcher does not see."""


@dataclass(frozen=True, eq=False)
class _Operation:
    """An operation, and where its arguments come from and its results go to.

    Attributes:
        run: the operation.
        args, kwargs: its arguments, with a `_Result` for each that is a recorded one's result.
        read: the numbers of these results.
        written: the numbers of its own results.
    """

    run: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    read: list[int]
    written: list[int]


class _Result(int):
    """The number of a result, in whose place it stands in an operation's arguments."""


class _Recorder(TorchDispatchMode):
    """Records the operations inside the `with` block that depend on some tensors.

    Args:
        moved: the tensors.

    Attributes:
        operations: the operations so far.
        numbers: the number of each of their results that still exists.
        refused: says why they cannot be run again, or None.
    """

    supports_higher_order_operators = True  # they are refused, and no error

    def __init__(self, moved: Iterable[Tensor]) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self.numbers = WeakIdKeyDictionary()
        self.refused: str | None = None
        self._moved = {_memory(tensor) for tensor in moved}
        self._read: set[int] = set()  # the memory that operations read and have not made
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        whole = torch.is_inference_mode_enabled() and isinstance(func, OpOverload)
        if whole and func._can_decompose():  # outside of inference mode torch has done that before
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if self.refused is None:
            depend = [i for i, x in enumerate(tree_leaves((args, kwargs))) if self.depends(x)]
            written = _written(func, args, kwargs)
            if depend:
                self.refused = self._unrepeatable(func, depend, written, result)
                if self.refused is None:
                    self._record(func, args, kwargs, result)
            elif not self._read.isdisjoint(map(_memory, written)):
                self.refused = f"{func} changes what an operation has read"
        return result

    def depends(self, value: object) -> bool:
        """Tell whether a value is a tensor that depends on the moved ones."""
        if not isinstance(value, Tensor):
            return False
        return value in self.numbers or _memory(value) in self._moved

    def _unrepeatable(
        self, func: Any, depend: list[int], written: list[Tensor], result: Any
    ) -> str | None:
        """Say why an operation cannot be run again with other weights; None if it can.

        Args:
            func: the operation.
            depend: the indices of its arguments that depend on the moved tensors.
            written: the tensors that it changes.
            result: its results.
        """
        if not isinstance(func, OpOverload):
            return f"{func} is not a single operation"
        if torch.Tag.nondeterministic_seeded in func.tags:
            return f"{func} may draw random numbers"
        shaped = torch.Tag.dynamic_output_shape in func.tags
        if shaped and not (func in _SELECTIONS and depend == [0]):
            return f"{func} has results whose shape depends on values"
        if not all(isinstance(leaf, Tensor | None) for leaf in tree_leaves(result)):
            return f"{func} reads a value"
        if not all(tensor in self.numbers for tensor in written):
            return f"{func} changes a tensor that it would find changed"
        return None

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        read = []

        def kept(tensor: Tensor) -> Tensor | _Result:
            if tensor not in self.numbers:
                self._read.add(_memory(tensor))
                return tensor
            read.append(self.numbers[tensor])
            return _Result(read[-1])

        args, kwargs = tree_map_only(Tensor, kept, (args, kwargs))
        written = []
        for tensor in _tensors(result):
            if tensor not in self.numbers:  # else it was changed in place
                self.numbers[tensor] = self._count
                self._count += 1
            written.append(self.numbers[tensor])
        self.operations.append(_Operation(func, args, kwargs, read, written))


class _WaysOut(TorchFunctionMode):
    """Refuses a recording in which values that depend on the moved tensors leave the dispatcher."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAYS_OUT and any(map(self._recorder.depends, tree_leaves(args))):
            self._recorder.refused = f"{func.__name__} reads a value past torch's operations"
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    """Return a number that tensors which share memory have in common, while one of them exists."""
    if not torch._C._has_storage(tensor):  # a sparse one
        return id(tensor)
    number: int = tensor.untyped_storage()._cdata
    return number


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation changes."""
    if not isinstance(func, OpOverload) or not func._schema.is_mutable:
        return []
    parameters = func._schema.arguments
    given = dict(zip((p.name for p in parameters), args, strict=False)) | kwargs
    writes = (p.name for p in parameters if p.alias_info is not None and p.alias_info.is_write)
    return _tensors([given.get(name) for name in writes])


Results = list[Any]
"""By its number, each result that a later operation still reads."""


class _Recorded:
    """Runs recorded operations again.

    Args:
        operations: the operations, in order.
        loss: number of the result that is returned.
    """

    def __init__(self, operations: Sequence[_Operation], loss: int) -> None:
        self._loss = loss
        later, runs = {loss}, []
        for operation in reversed(operations):
            used = {*operation.read, *operation.written}
            # freed as soon as they are in the model, so that they take no more memory
            runs.append(_run(operation, freed=tuple(used - later)))
            later |= used
        self._runs = runs[::-1]
        self._results: Results = [None] * (1 + max(later))

    def __call__(self) -> Tensor:
        # an operation was recorded after autocast and overrides had done their part
        with torch._C._DisableAutocast(), torch._C.DisableTorchFunction():
            for run in self._runs:
                run(self._results)
        loss: Tensor = self._results[self._loss]
        self._results[self._loss] = None
        return loss


def _run(operation: _Operation, freed: Sequence[int]) -> Callable[[Results], None]:
    """Return what runs an operation on the results so far.

    Args:
        operation: the operation.
        freed: the results that nothing reads after it.
    """
    func, args, kwargs = operation.run, operation.args, operation.kwargs
    written = operation.written
    from_results = {i: take for i, value in enumerate(args) if (take := _taking(value)) is not None}
    named = {k: take for k, value in kwargs.items() if (take := _taking(value)) is not None}

    def run(results: Results) -> None:
        filled = list(args)
        for i, take in from_results.items():
            filled[i] = take(results)
        result = func(*filled, **kwargs | {k: take(results) for k, take in named.items()})
        if isinstance(result, Tensor):
            results[written[0]] = result
        else:
            for number, tensor in zip(written, _tensors(result), strict=True):
                results[number] = tensor
        for number in freed:
            results[number] = None

    return run


def _taking(value: Any) -> Callable[[Results], Any] | None:
    """Return what takes an argument from the results; None if it has nothing of them."""
    if isinstance(value, _Result):
        return itemgetter(value)
    if not any(isinstance(leaf, _Result) for leaf in tree_leaves(value)):
        return None
    return lambda results: tree_map_only(_Result, lambda number: results[number], value)


class Recording:
    """Evaluates the loss at many places of the moved weights, all else being the same.

    Args:
        moved: the weights that move, in place, between evaluations.
        released: returns a context in which Ctrl-C may come. Default: it may anywhere.

    Attributes:
        refused: says why every evaluation runs in full, or None.
    """

    CHECKED = 2
    """Number of evaluations, after the recorded one, that run in full too. They show whether the
    loss depends on the weights by what a recording does not see."""

    def __init__(
        self,
        moved: Sequence[Tensor],
        released: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.refused: str | None = None
        self._moved, self._released = moved, released
        self._recorded: _Recorded | None = None
        self._checked = 0

    def evaluated(self, evaluate: Callable[[], Tensor]) -> Tensor:
        """Return the loss at the weights as they are.

        Args:
            evaluate: evaluates it in full.
        """
        if self.refused is not None:
            return evaluate()
        if self._recorded is None:
            return self._record(evaluate)
        if self._checked == self.CHECKED:
            with self._released():
                return self._recorded()
        self._checked += 1
        # first, as memory that it leaves unwritten might hold a full evaluation's results
        again = self._recorded()
        loss = evaluate()
        if not torch.allclose(again, loss, rtol=0, atol=0, equal_nan=True):
            self.refused = "the loss depends on the weights by more than torch's operations"
            self._recorded = None
        return loss

    def _record(self, evaluate: Callable[[], Tensor]) -> Tensor:
        if has_compiled():
            self.refused = "torch.compile has compiled code, which may round otherwise"
            return evaluate()
        recorder = _Recorder(self._moved)
        with eager(), recorder, _WaysOut(recorder):  # a compiler cannot trace a dispatch mode
            loss = evaluate()
        self.refused = recorder.refused
        if self.refused is None and loss not in recorder.numbers:
            self.refused = "the loss does not come from the weights by torch's operations"
        if self.refused is None:
            self._recorded = _Recorded(recorder.operations, recorder.numbers[loss])
        return loss

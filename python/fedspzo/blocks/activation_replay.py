"""Capture and replay: the layers before a cut run once, then return their output at once.

In *capture* the layers run and a copy of the output before every cut is kept, call by call; in
*replay* every layer before one cut returns the output that was kept there. Only the instances'
`forward` is shadowed, so hooks still fire and no model is rewritten.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

_ABSENT = object()


class ActivationReplay:
    """Shadows the `forward` of consecutive layers inside a `with` block.

    Args:
        layers: the modules, in the order in which the model calls them. Empty: does nothing.
        starts: the cuts: for each block but the first, how many of the layers its evaluations
            replay, ascending. Default: one cut, after all of them.

    `mode` is "run" (the model as it is), "capture" or "replay"; set it before each evaluation with
    `capture()` or `replay()` and verify the evaluation with `check()`.
    """

    def __init__(self, layers: Sequence[nn.Module], starts: Sequence[int] | None = None) -> None:
        self.layers = tuple(layers)
        self.starts = tuple([len(self.layers)][: len(self.layers)] if starts is None else starts)
        self.mode = "run"
        self._outputs: dict[int, list[Any]] = {start: [] for start in self.starts}  # in call order
        self._cut = 0  # where the evaluation counts its calls
        self._calls = 0
        self._shadowed: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> ActivationReplay:
        for index, layer in enumerate(self.layers):
            # accelerate, among others, keeps a forward of its own in this slot
            self._shadowed.append((layer, layer.__dict__.get("forward", _ABSENT)))
            layer.forward = self._shadow(layer.forward, after=index + 1)
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._shadowed:
            layer, forward = self._shadowed.pop()
            if forward is _ABSENT:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward
        self.mode = "run"
        self._forget()

    def _forget(self) -> None:
        for outputs in self._outputs.values():
            outputs.clear()

    def capture(self) -> None:
        """Run the layers in the next evaluation and keep what they return before each cut."""
        self.mode, self._calls = "capture", 0
        self._cut = self.starts[-1] if self.starts else 0
        self._forget()

    def replay(self, blocks: int = 1) -> None:
        """Return what was captured in the next evaluation, in place of the first `blocks` blocks.

        Args:
            blocks: 1 to the number of cuts.
        """
        self.mode, self._calls = "replay", 0
        self._cut = self.starts[blocks - 1] if self.starts else 0

    def check(self) -> None:
        """Raise if the evaluation since `capture()` or `replay()` did not use the layers alike.

        Raises:
            RuntimeError: the model never ran the layers, or not as often as when captured.
        """
        if not self.layers or self.mode == "run":
            return
        if self._calls == 0:
            raise RuntimeError(
                "the closure's loss did not run the first block's layers; compute it with the"
                " model that was split, and let the model call its layers as modules"
            )
        if self._calls != len(self._outputs[self._cut]):
            raise RuntimeError(
                f"the closure ran the model {self._calls} times in a replayed evaluation and"
                f" {len(self._outputs[self._cut])} times before; every call of a step must see the"
                " same data"
            )

    def _shadow(self, forward: Callable[..., Any], *, after: int) -> Callable[..., Any]:
        def shadow(*args: Any, **kwargs: Any) -> Any:
            if self.mode != "replay" or after > self._cut:
                output = forward(*args, **kwargs)
                if self.mode == "capture" and after in self._outputs:
                    self._outputs[after].append(_copy(output))
                    self._calls += after == self._cut
                return output
            outputs = self._outputs[self._cut]
            if self._calls >= len(outputs):
                raise RuntimeError(
                    f"the closure runs the model more than the {len(outputs)} times it did"
                    " when the first block was captured; every call of a step must see the same"
                    " data"
                )
            output = outputs[self._calls]
            if after < self._cut:
                return output
            self._calls += 1
            return _copy(output)

        return shadow


def _copy(output: Any) -> Any:
    """Copy the tensors of a layer's output: what comes next may change its input in place."""
    return tree_map_only(Tensor, torch.clone, output)


class Touched(TorchDispatchMode):
    """Records which of some tensors the operations inside the `with` block read or write.

    It looks at the memory that each operation is given, so it sees parameters that are used
    outside their own module's forward too. Recording ends when `until`, if given, returns for
    the first time.

    Args:
        tensors: name to tensor.
        until: a module.
    """

    def __init__(self, tensors: Mapping[str, Tensor], until: nn.Module | None = None) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.done = False
        self._spans = sorted(
            (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name)
            for name, t in tensors.items()
        )
        self._starts = [start for start, _, _ in self._spans]
        self._until = until
        self._hook: Any = None

    def __enter__(self) -> Touched:
        if self._until is not None:
            self._hook = self._until.register_forward_hook(self._end, always_call=False)
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        if self._hook is not None:
            self._hook.remove()

    def _end(self, *_: Any) -> None:
        self.done = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.done:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._record(leaf.data_ptr())
        return func(*args, **(kwargs or {}))

    def _record(self, address: int) -> None:
        i = bisect_right(self._starts, address) - 1
        if i >= 0 and address < self._spans[i][1]:
            self.names.add(self._spans[i][2])


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Turn off what only training or generating needs, and put it back: dropout, caches.

    Every submodule's `training` flag is cleared, directly: `model.eval()` may do more, such as
    merging adapters. So is a Hugging Face configuration's `use_cache`, which has a decoder keep
    all layers' keys and values for tokens that never come.
    """
    modules = [] if model is None else list(model.modules())
    configs = [vars(module).get("config") for module in modules]
    flags = [*((m, "training") for m in modules), *((c, "use_cache") for c in configs)]
    flags = [(owner, flag) for owner, flag in flags if getattr(owner, flag, None) is True]
    try:
        for owner, flag in flags:
            with suppress(AttributeError):  # a frozen configuration stays as it is
                setattr(owner, flag, False)
        yield
    finally:
        for owner, flag in flags:
            with suppress(AttributeError):
                setattr(owner, flag, True)


def eager() -> AbstractContextManager[Any]:
    """Run a compiled model's own code: called under a dispatch mode, it would never be compiled."""
    compiled = "torch._dynamo" in sys.modules  # which takes seconds to import
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class _NoModules(ModuleTracker):
    """Counts for the whole alone.

    Without gradients the tracker's hooks fail where a parameter is a module's input (DeBERTa).
    """

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def _flop_counter() -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    return counter


def measure(
    replay: ActivationReplay, blocks: Sequence[Mapping[str, Tensor]], evaluate: Callable[[], Tensor]
) -> tuple[float, ...]:
    """Check that a model works as it was split, and measure what each replay costs.

    Evaluates once in full and once replayed from every cut, at the weights as they are.

    Args:
        replay: entered, with at least one layer.
        blocks: the parameters of the blocks by name, without the first block's.
        evaluate: returns the loss, always of the same data.

    Returns:
        For every cut, the floating point operations of an evaluation replayed there over those of
        the full one, in (0, 1].

    Raises:
        RuntimeError: a block's parameters are used before its cut, or the losses differ.
    """
    replay.capture()
    with ExitStack() as stack:
        stack.enter_context(eager())
        early = [
            stack.enter_context(Touched(block, until=replay.layers[start - 1]))
            for block, start in zip(blocks, replay.starts, strict=True)
        ]
        full = stack.enter_context(_flop_counter())
        loss = evaluate()
    replay.check()
    for number, touched in enumerate(early, 2):
        if touched.names:
            raise RuntimeError(
                f"block {number}'s parameters {sorted(touched.names)} are used before the cut; pass"
                " example=BATCH to blocks.split, so that it can see where they are used"
            )
    total = full.get_total_flops()
    shares = []
    for number in range(1, len(replay.starts) + 1):
        replay.replay(number)
        with eager(), _flop_counter() as part:
            again = evaluate()
        replay.check()
        # On a CPU forward passes repeat to the bit; other devices may add in another order.
        tolerance = 0.0 if loss.device.type == "cpu" else 1e-3
        if loss.isfinite() and not torch.isclose(again, loss, rtol=tolerance, atol=0.0):
            raise RuntimeError(
                f"the loss is {loss.item()} in full and {again.item()} replayed before block"
                f" {number + 1}. Either the closure's data or dropout change from call to call, or"
                f" block {number + 1} uses more than the last output of the layers before it: then"
                " cut elsewhere, or pass Blocks.single(model)"
            )
        shares.append(max(part.get_total_flops(), 1) / total if total else 1.0)
    return tuple(shares)

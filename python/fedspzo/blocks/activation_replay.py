"""Activation replay: the layers before a cut run once, then return their output at once.

In *capture* the layers run, and a copy of the output before every cut is kept, call by call. In
*replay* every layer before one cut returns the output that was kept there. Only the instances'
`forward` is shadowed, so hooks still fire and no model is rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_ABSENT = object()


class ActivationReplay:
    """Shadows the `forward` of consecutive layers inside a `with` block.

    Call `capture()` or `replay()` before each evaluation, and `check()` after it.

    Args:
        layers: the modules, in the order in which the model calls them. Without layers it does
            nothing.
        starts: the cuts, ascending: for each block but the first, the number of layers that its
            evaluations replay. Default: one cut, after all layers.

    Attributes:
        mode: "run" (the model as it is), "capture" or "replay".
    """

    def __init__(self, layers: Sequence[nn.Module], starts: Sequence[int] | None = None) -> None:
        self.layers = tuple(layers)
        self.starts = tuple([len(self.layers)][: len(self.layers)] if starts is None else starts)
        self.mode = "run"
        self._outputs: dict[int, list[Any]] = {start: [] for start in self.starts}  # in call order
        self._cut = 0  # the cut at which an evaluation counts its calls
        self._calls = 0
        self._shadowed: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> ActivationReplay:
        for index, layer in enumerate(self.layers):
            # accelerate, among others, keeps its own forward in this slot
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
        """Run the layers in the next evaluation, and keep their output before each cut."""
        self.mode, self._calls = "capture", 0
        self._cut = self.starts[-1] if self.starts else 0
        self._forget()

    def replay(self, blocks: int = 1) -> None:
        """Return the captured output in the next evaluation, and run no layer of some blocks.

        Args:
            blocks: number of leading blocks that are replayed, from 1 to the number of cuts.
        """
        self.mode, self._calls = "replay", 0
        self._cut = self.starts[blocks - 1] if self.starts else 0

    def check(self) -> None:
        """Check that the evaluation since `capture()` or `replay()` called the layers as it should.

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
    """Copy the tensors of a layer's output, as the next layer may change its input in place."""
    return tree_map_only(Tensor, torch.clone, output)

"""Activation replay: the layers before a cut run once, then return their output at once.

In *capture* the layers run. Their input and a copy of the output before every cut are kept, call by
call. In *replay* every layer before one cut returns the output that was kept there, if the input is
the kept one bit for bit. A call with another input runs in full, as when a closure generates text.
Only the instances' `forward` is shadowed, so hooks still fire and no model is rewritten.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .layer_input import LayerInput, same_bits, same_bits_later

_ABSENT = object()


@dataclass(eq=False)
class _Call:
    """Holds one call of the model: the first layer's input, and the output before each cut."""

    input: LayerInput
    outputs: dict[int, Any] = field(default_factory=dict)


class ActivationReplay:
    """Shadows the `forward` of consecutive layers inside a `with` block.

    Call `capture()` or `replay()` before each evaluation, and make it by `evaluated()`.

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
        self._captured: list[_Call] = []
        self._cut = 0  # the cut up to which an evaluation replays
        self._calls = 0  # of this evaluation
        self._again = 0  # of these calls, those that could be replayed but had another input
        self._current: _Call | None = None  # the call that is being captured or replayed
        self._unread: list[Tensor] = []  # comparisons whose results nobody has looked at
        self._told = False
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
        self._start("run")
        self._captured.clear()

    def capture(self) -> None:
        """Run the layers in the next evaluation, and keep their output before each cut."""
        self._start("capture")
        self._cut = self.starts[-1] if self.starts else 0
        self._captured.clear()

    def replay(self, blocks: int = 1) -> None:
        """Return the captured output in the next evaluation, and run no layer of some blocks.

        Args:
            blocks: number of leading blocks that are replayed, from 1 to the number of cuts.
        """
        self._start("replay")
        self._cut = self.starts[blocks - 1] if self.starts else 0

    def run(self) -> None:
        """Run the model as it is in the next evaluation. What was captured stays."""
        self._start("run")

    def _start(self, mode: str) -> None:
        self.mode, self._calls, self._again = mode, 0, 0
        self._current = None
        self._unread.clear()

    def evaluated(self, evaluate: Callable[[], Tensor]) -> Tensor:
        """Return the loss of one evaluation, after `capture()`, `replay()` or `run()`.

        Args:
            evaluate: calls the model and returns the loss.

        Raises:
            RuntimeError: the model never ran the layers.
        """
        loss = evaluate()
        self.check()
        if self._unread and not torch.stack(self._unread).all():
            calls = self._calls
            self.run()
            loss = evaluate()
            self._again = calls
        return loss

    def check(self) -> None:
        """Check that the evaluation since `capture()` or `replay()` called the layers.

        Warns once if the layers' input cannot be compared, so that calls run in full.

        Raises:
            RuntimeError: the model never ran the layers.
        """
        if not self.layers or self.mode == "run":
            return
        if self._calls == 0:
            raise RuntimeError(
                "the closure's loss did not run the first block's layers; compute it with the"
                " model that was split, and let the model call its layers as modules"
            )
        foreign = next((call.input.foreign for call in self._captured if call.input.foreign), None)
        if foreign and not self._told:
            self._told = True
            warnings.warn(
                f"the model's layers are given a {foreign}, which may hold state, so such calls"
                " are not replayed but run in full. If it is a key-value cache of model.generate,"
                " use_cache=False lets them be replayed",
                stacklevel=2,
            )

    def rerun(self) -> float:
        """Return the share of the captured calls that the last evaluation ran in full again.

        Calls that can never be replayed do not count, as the measured cost shares hold them.
        """
        able = sum(call.input.foreign is None for call in self._captured)
        return min(1.0, self._again / max(1, able))

    def _shadow(self, forward: Callable[..., Any], *, after: int) -> Callable[..., Any]:
        def shadow(*args: Any, **kwargs: Any) -> Any:
            if after == 1 and self.mode != "run":
                self._begin(args, kwargs)
            call = self._current
            if call is None or self.mode != "replay":
                output = forward(*args, **kwargs)
                if call is not None and after in self.starts and not call.input.foreign:
                    call.outputs[after] = _copy(output)
                return output
            output = call.outputs[self._cut]
            if after < self._cut:
                return output
            self._current = None
            return _copy(output)

        return shadow

    def _begin(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Begin a call of the model, given the first layer's input."""
        number = self._calls
        self._calls += 1
        if self.mode == "capture":
            self._current = _Call(LayerInput(args, kwargs))
            self._captured.append(self._current)
            return
        known = self._captured[number] if number < len(self._captured) else None
        self._current = known if known and self._repeats(known, args, kwargs) else None
        if self._current is None and (known is None or known.input.foreign is None):
            self._again += 1

    def _repeats(self, call: _Call, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        pairs = call.input.pairs(args, kwargs)
        if pairs is None or self._cut not in call.outputs:
            return False
        if torch.compiler.is_compiling():  # a compiled graph cannot branch on what a tensor holds
            self._unread += [same_bits_later(kept, given) for kept, given in pairs]
            return True
        return all(same_bits(kept, given) for kept, given in pairs)


def _copy(output: Any) -> Any:
    """Copy the tensors of a layer's output, as the next layer may change its input in place."""
    return tree_map_only(Tensor, torch.clone, output)

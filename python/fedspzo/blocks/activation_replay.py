"""Activation replay: the layers before a cut run once, then return their output at once.

In *capture* the layers run. Their input and a copy of the output before every cut are kept, call by
call. In *replay* every layer before one cut returns the output that was kept there, if the input is
the kept one bit for bit. A call with another input runs in full, as when a closure generates text.
Leading layers that are frozen run in the first capture alone. Modules beside the layers are
replayed by `side_modules`. Only the instances' `forward` is shadowed, so hooks still fire and no
model is rewritten.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .layer_input import NESTED, LayerInput, same_bits, same_bits_later
from .shadow import Forward, shadowed
from .side_modules import Beside, SideReplay


@dataclass(eq=False)
class _Call:
    """Holds one call of the model: the first layer's input, and the output before each cut."""

    input: LayerInput
    outputs: dict[int, Any] = field(default_factory=dict)

    def keep(self, cut: int, output: Any) -> None:
        """Keep a copy of the output before a cut, unless the input cannot be compared."""
        if not self.input.foreign:
            self.outputs[cut] = _copy(output)

    def only(self, cut: int) -> _Call:
        """Return the call without the outputs before other cuts."""
        return _Call(self.input, {at: out for at, out in self.outputs.items() if at == cut})


class ActivationReplay:
    """Shadows the `forward` of consecutive layers inside a `with` block.

    Call `capture()` or `replay()` before each evaluation, and make it by `evaluated()`.

    Args:
        layers: the modules, in the order in which the model calls them. Without layers it does
            nothing.
        starts: the cuts, ascending: for each block but the first, the number of layers that its
            evaluations replay. Default: one cut, after all layers.
        frozen: number of leading layers before which, and in which, no weight ever moves.
        beside: modules beside the layers, as `SideReplay` takes them.

    Attributes:
        mode: "run" (the model as it is), "capture" or "replay".
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        starts: Sequence[int] | None = None,
        frozen: int = 0,
        beside: Beside = (),
    ) -> None:
        self.layers = tuple(layers)
        self.starts = tuple([len(self.layers)][: len(self.layers)] if starts is None else starts)
        self.frozen = frozen
        self.mode = "run"
        self._cuts = {frozen, *self.starts}
        self._last = max(self._cuts)
        self._captured: list[_Call] = []
        self._frozen: list[_Call] = []  # those of the capture before, with what is frozen alone
        self._cut = 0  # number of leading layers that an evaluation does not run
        self._calls = 0  # of this evaluation
        self._again = 0  # of these calls, those that could be replayed but had another input
        self._current: _Call | None = None  # the call that is being captured or replayed
        self._skipped = 0  # number of leading layers that do not run in this call
        self._stand_in: Any = None  # what these return, but for the last one
        self._passed = False  # this evaluation has come to the last cut
        self._unread: list[Tensor] = []  # comparisons whose results nobody has looked at
        self._told = False
        self._beside = SideReplay(beside, reached=lambda: self._passed)
        self._shadows = ExitStack()

    def __enter__(self) -> ActivationReplay:
        for number, layer in enumerate(self.layers, 1):
            self._shadows.enter_context(shadowed(layer, partial(self._shadow, after=number)))
        self._shadows.enter_context(self._beside)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._shadows.close()
        self._start("run")
        self._captured, self._frozen = [], []

    @property
    def depends(self) -> Callable[[Sequence[Any]], bool] | None:
        """Tells whether a module's inputs depend on parameters that train, while it is known."""
        return self._beside.depends

    @depends.setter
    def depends(self, tells: Callable[[Sequence[Any]], bool] | None) -> None:
        self._beside.depends = tells

    @property
    def has_frozen(self) -> bool:
        """Tell whether there is something frozen that may be replayed for block 1."""
        return self.frozen > 0 or self._beside.has_frozen

    @property
    def keeps_frozen(self) -> bool:
        """Tell whether the next capture replays something frozen, which was captured before."""
        kept = any(self.frozen in call.outputs for call in self._captured)
        return kept or self._beside.captured_frozen

    def capture(self) -> None:
        """Run the layers in the next evaluation, and keep their output before each cut.

        Frozen layers run only if they have not been captured since the `with` block began.
        """
        self._frozen = [call.only(self.frozen) for call in self._captured] if self.frozen else []
        self._captured = []
        self._start("capture", self.frozen if self._frozen else 0)
        self._beside.begin(0)

    def replay(self, blocks: int = 1) -> None:
        """Return the captured output in the next evaluation, and run no layer of some blocks.

        Args:
            blocks: number of leading blocks that are replayed, from 1 to the number of cuts.
        """
        self._start("replay", self.starts[blocks - 1] if self.starts else 0)
        self._beside.begin(blocks)

    def run(self) -> None:
        """Run the model as it is in the next evaluation. What was captured stays."""
        self._start("run")
        self._beside.begin(None)

    def _start(self, mode: str, cut: int = 0) -> None:
        self.mode, self._cut = mode, cut
        self._calls, self._again = 0, 0
        self._current, self._skipped, self._passed = None, 0, False
        self._stand_in = None
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
            remedy = "If it is a key-value cache of model.generate, use_cache=False"
            if foreign == NESTED:
                remedy = "nn.TransformerEncoder(..., enable_nested_tensor=False)"
            warnings.warn(
                f"the model's layers are given a {foreign}, which may hold state, so such calls"
                f" are not replayed but run in full. {remedy} lets them be replayed",
                stacklevel=2,
            )

    def rerun(self) -> float:
        """Return the share of the captured calls that the last evaluation ran in full again.

        Calls that can never be replayed do not count, as the measured cost shares hold them.
        """
        able = sum(call.input.foreign is None for call in self._captured)
        return min(1.0, self._again / max(1, able))

    def _shadow(self, forward: Forward, *, after: int) -> Forward:
        def shadow(*args: Any, **kwargs: Any) -> Any:
            if after == 1 and self.mode != "run":
                self._begin(args, kwargs)
            call = self._current
            if call is None or after > self._skipped:
                output = forward(*args, **kwargs)
                if call is not None and self.mode == "capture" and after in self._cuts:
                    call.keep(after, output)
            elif after < self._skipped:
                return self._stand_in
            else:
                output, self._stand_in = _copy(call.outputs[after]), None
            self._passed |= after == self._last
            return output

        return shadow

    def _begin(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Begin a call of the model, given the first layer's input."""
        number = self._calls
        self._calls += 1
        calls = self._frozen if self.mode == "capture" else self._captured
        kept = calls[number] if number < len(calls) else None
        if kept is None or not self._repeats(kept, args, kwargs):
            able = kept is None or not kept.input.foreign
            self._again += self._cut > 0 and able
            kept = None
        self._skipped = 0 if kept is None else self._cut
        # a copy, as a model may change in place what a layer returns
        self._stand_in = _copy(kept.outputs[self._cut]) if kept and self._skipped > 1 else None
        if self.mode == "capture":
            kept = kept or _Call(LayerInput(args, kwargs))
            self._captured.append(kept)
        self._current = kept

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

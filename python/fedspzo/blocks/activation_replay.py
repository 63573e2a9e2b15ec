"""Activation replay: the layers before a cut run once, then return their output at once.

In *capture* the layers run, and a copy of the output before every cut is kept, call by call. In
*replay* every layer before one cut returns the output that was kept there. Leading layers that are
frozen run in the first capture alone. Modules beside the layers are replayed by `side_modules`.
Only the instances' `forward` is shadowed, so hooks still fire and no model is rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .side_modules import Beside, SideReplay

_ABSENT = object()


class ActivationReplay:
    """Shadows the `forward` of consecutive layers inside a `with` block.

    Call `capture()` or `replay()` before each evaluation, and `check()` after it.

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
        cuts = (frozen, *self.starts) if frozen else self.starts
        self._outputs: dict[int, list[Any]] = {cut: [] for cut in cuts}  # in call order
        self._last = max(cuts, default=0)
        self._cut = 0  # the cut at which an evaluation counts its calls
        self._skipped = 0  # number of layers that return what was kept
        self._calls = 0
        self._replayed = 0  # calls of the last layer that is skipped
        self._beside = SideReplay(beside, reached=lambda: self._calls > 0)
        self._shadowed: list[tuple[nn.Module, Any]] = []

    def __enter__(self) -> ActivationReplay:
        for index, layer in enumerate(self.layers):
            # accelerate, among others, keeps its own forward in this slot
            self._shadowed.append((layer, layer.__dict__.get("forward", _ABSENT)))
            layer.forward = self._shadow(layer.forward, after=index + 1)
        self._beside.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._beside.__exit__(*exc_info)
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
        return bool(self._outputs.get(self.frozen)) or self._beside.captured_frozen

    def capture(self) -> None:
        """Run the layers in the next evaluation, and keep their output before each cut.

        Frozen layers run only if they have not been captured since the `with` block began.
        """
        self.mode, self._calls, self._replayed = "capture", 0, 0
        kept = self._outputs.get(self.frozen, [])
        self._cut, self._skipped = self._last, self.frozen if kept else 0
        for cut, outputs in self._outputs.items():
            if cut > self._skipped:
                outputs.clear()
        self._beside.begin(0)

    def replay(self, blocks: int = 1) -> None:
        """Return the captured output in the next evaluation, and run no layer of some blocks.

        Args:
            blocks: number of leading blocks that are replayed, from 1 to the number of cuts.
        """
        self.mode, self._calls, self._replayed = "replay", 0, 0
        self._cut = self._skipped = self.starts[blocks - 1] if self.starts else 0
        self._beside.begin(blocks)

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
        captured = len(self._outputs[self._skipped]) if self._skipped else self._replayed
        if self._replayed != captured:
            raise RuntimeError(
                f"the closure ran the model {self._replayed} times in a replayed evaluation and"
                f" {captured} times before; every call of a step must see the"
                " same data"
            )

    def _shadow(self, forward: Callable[..., Any], *, after: int) -> Callable[..., Any]:
        def shadow(*args: Any, **kwargs: Any) -> Any:
            if self.mode == "run" or after > self._skipped:
                output = forward(*args, **kwargs)
                if self.mode == "capture" and after in self._outputs:
                    self._outputs[after].append(_copy(output))
                    self._calls += after == self._cut
                return output
            outputs = self._outputs[self._skipped]
            if self._replayed >= len(outputs):
                raise RuntimeError(
                    f"the closure runs the model more than the {len(outputs)} times it did"
                    " when the first block was captured; every call of a step must see the same"
                    " data"
                )
            output = outputs[self._replayed]
            if after < self._skipped:
                return output
            self._replayed += 1
            self._calls += after == self._cut
            return _copy(output)

        return shadow


def _copy(output: Any) -> Any:
    """Copy the tensors of a layer's output, as the next layer may change its input in place."""
    return tree_map_only(Tensor, torch.clone, output)

"""Check in the first step that the closure's loss repeats, and find losses that do not move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.blocks.repeats import changing, repeats


class FirstEvaluation:
    """Evaluates the loss, the first time twice: it has to be the same at the same weights.

    Args:
        evaluate: returns the loss, a scalar; with privacy one loss an example, (B,).
        replay: an entered replay that is about to capture.
        devices: the devices that compute the loss.
        known: the loss at theta as it was measured, summed if there are several. If the first
            evaluation gives it too, a second one is not needed. Default: not known.

    Attributes:
        extra: number of evaluations made in addition, 0 or 1.
    """

    def __init__(
        self,
        evaluate: Callable[[], Tensor],
        replay: ActivationReplay,
        devices: Sequence[torch.device],
        known: Tensor | None = None,
    ) -> None:
        self._evaluate, self._replay = evaluate, replay
        self._devices, self._known = devices, known
        self._done = False
        self.extra = 0

    def __call__(self) -> Tensor:
        """Return the loss.

        Raises:
            RuntimeError: the second evaluation gave another loss than the first.
        """
        loss = self._evaluate()
        if self._done:
            return loss
        self._done = True
        # a compiled model or a head that runs by rows may round otherwise than when measured
        if self._known is None or not repeats(self._known, loss.sum(), self._devices):
            self._replay.capture()
            again = self._evaluate()
            self.extra = 1
            if not repeats(loss, again, self._devices):
                raise changing(loss, again)
        return loss

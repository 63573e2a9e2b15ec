"""Check that a closure's loss repeats when it is evaluated again at the same weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Largest relative change of a loss off the CPU, where sums may be added in another order. On a CPU
a loss repeats to the bit."""


def repeats(loss: Tensor, again: Tensor, devices: Iterable[torch.device]) -> bool:
    """Tell whether a second evaluation gave the same loss, or the same losses.

    Args:
        loss: the loss of the first evaluation.
        again: that of the second one, at the same weights.
        devices: the devices that computed it.
    """
    rtol = 0.0 if all(device.type == "cpu" for device in devices) else TOLERANCE
    if loss.shape != again.shape:
        return False
    return torch.allclose(again, loss.to(again), rtol=rtol, atol=0.0, equal_nan=True)


def changing(loss: Tensor, again: Tensor) -> RuntimeError:
    """Return the error that says that a loss does not repeat, and what the causes may be."""
    values = f"{loss.double().mean().item()} and then {again.double().mean().item()}"
    return RuntimeError(
        f"the loss was {values} at the same weights: the closure's data, dropout or noise change"
        " from call to call, and would be trained on. Draw the batch and its masks before the step,"
        " not in the closure; turn off dropout that the model's training flag does not control"
        " (with bare parameters call model.eval(), or pass Blocks.single(model)); sample no tokens"
        " (do_sample=False). To keep noise, set its seed at the closure's start"
    )

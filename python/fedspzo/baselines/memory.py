"""Measures the memory that a backward pass needs beyond that of a forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.federated import Task


def saved_bytes(blocks: Blocks, task: Task, batch: Any) -> int:
    """Return the bytes of the activations that autograd saves for one batch's backward pass.

    Hooks measure them, on any device. Each storage counts once, and parameters do not count.
    First-order training with AdamW also needs the gradients and two moments, which take three times
    the bytes of the trainable weights.
    """
    parameters = {p.untyped_storage().data_ptr() for p in blocks.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        data = tensor.untyped_storage()
        if data.data_ptr() not in parameters:
            kept[data.data_ptr()] = data.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with evaluating(blocks.model), torch.enable_grad(), hooks:
        # kept alive, so that no saved storage is freed and reused
        loss = task.loss(blocks.model, batch)
    total = sum(kept.values())
    del loss
    return total

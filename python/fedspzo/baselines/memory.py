"""How much memory a backward pass needs that a forward pass does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.federated.client import Task


def saved_bytes(blocks: Blocks, task: Task, batch: Any) -> int:
    """Bytes of the activations that autograd keeps from one batch for its backward pass.

    Measured by hooks, on any device, each storage once and parameters left out. First-order
    training with AdamW further needs gradients and two moments: three times the trainable weights.
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
        loss = task.loss(blocks.model, batch)  # alive: what it keeps is not freed and used again
    total = sum(kept.values())
    del loss
    return total

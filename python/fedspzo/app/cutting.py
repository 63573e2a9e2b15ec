"""Cuts a config's model into blocks. Server and clients have to cut alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fedspzo import estimators
from fedspzo.blocks.cut import Blocks, split
from fedspzo.errors import InputError, one_line
from fedspzo.federated import OptimizerConfig
from fedspzo.federated.optimizers import spzo

from . import models
from .config import Config
from .tasks import Encoded, Task


def cut(
    config: Config,
    task: Task,
    model: nn.Module,
    examples: Sequence[Encoded],
    optimizer: OptimizerConfig,
) -> Blocks:
    """Cut a model into the blocks of `optimizer`. A joint estimator has a single block.

    Args:
        config: the run's config, for messages.
        task: the run's task.
        model: the model.
        examples: examples for a forward pass. Their content does not matter.
        optimizer: the settings of a step.

    Raises:
        InputError: the model cannot be cut there, or a setting does not fit the blocks.
    """
    batch = task.collate(examples)
    with models.working(config.model.name, "forward pass"), torch.no_grad():
        task.loss(model, batch)
    if estimators.find(optimizer.estimator).joint:
        return Blocks.single(model)
    device = next(model.parameters()).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    try:
        blocks = split(model, optimizer.at, example=inputs)
        spzo(blocks, optimizer)  # raises ValueError if a setting does not fit the blocks
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{config.path}: [optimizer] {one_line(error)}") from None
    return blocks

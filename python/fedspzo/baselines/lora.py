"""FedAvg over LoRA adapters (arXiv 2106.09685), made by peft: the frugal first-order way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult
from fedspzo.federated.client import Task

from . import fedavg
from .loop import Options


def adapted(blocks: Blocks, config: Any = None, *, seed: int = 0) -> Blocks:
    """The model with LoRA adapters, its own weights frozen, as one block.

    Args:
        blocks: the model; the adapters are put into it.
        config: a `peft.LoraConfig`. None: rank 8, alpha 16, in every linear
            layer but a language model's output layer (peft's "all-linear").
        seed: of the adapters' initial weights, so that all participants have the same.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ImportError(
            "LoRA adapters need peft, which is not installed; pip install peft"
        ) from None
    if config is None:
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Blocks.single(peft.get_peft_model(blocks.model, config))


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    *,
    config: Any = None,
    **options: Unpack[Options],
) -> RunResult:
    """`fedavg.run` where only the adapters of `adapted(blocks, config)` train and travel.

    A and B are averaged each for itself, as FedIT does: the mean of the products would not be a
    product of that rank.
    """
    with_adapters = adapted(blocks, config, seed=federation.seed)
    return fedavg.run(with_adapters, task, examples, federation, optimizer, **options)

"""FedAvg over LoRA adapters (arXiv 2106.09685), made by peft: the frugal first-order way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import Setup


def adapted(blocks: Blocks, config: Any = None, *, seed: int = 0) -> Blocks:
    """Put LoRA adapters into the model, freeze its own weights, and return it as one block.

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


def adapt(setup: Setup, *, config: Any = None) -> Setup:
    """Let only the adapters of `adapted(blocks, config)` train and travel.

    A and B are averaged each for itself, as FedIT does: the mean of the products would not be a
    product of that rank.
    """
    return replace(setup, blocks=adapted(setup.blocks, config, seed=setup.federation.seed))

"""LoRA adapters (arXiv 2106.09685) by peft, for FedAvg with few trainable weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import Setup


def adapted(blocks: Blocks, config: Any = None, *, seed: int = 0) -> Blocks:
    """Add LoRA adapters to a model, freeze its own weights, and return it as one block.

    Args:
        blocks: the model, which is changed in place.
        config: a `peft.LoraConfig`. Default None: rank 8 and alpha 16, in every linear layer but a
            language model's output layer (peft's "all-linear").
        seed: the seed of the adapters' initial weights, so that all participants have the same.

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
    """Return the setup that trains and sends only the adapters of `adapted(blocks, config)`.

    The factors A and B are averaged separately, as in FedIT (arXiv 2305.05644). The mean of the
    products B A would not have their rank.
    """
    return replace(setup, blocks=adapted(setup.blocks, config, seed=setup.federation.seed))

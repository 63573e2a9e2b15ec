"""The models that training is measured on, initialised at random in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import device

TINY = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def config(name: str) -> Any:
    """The configuration of OPT-1.3B or Llama-3.2-3B; in a dry run of a tiny model like it."""
    from transformers import LlamaConfig, OPTConfig

    if name == "OPT-1.3B":
        opt: dict[str, Any] = {
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
        }
        sizes = device.sized({**opt, "ffn_dim": 8192}, {**TINY, "ffn_dim": 64})
        return OPTConfig(**sizes, word_embed_proj_dim=sizes["hidden_size"], dtype=torch.bfloat16)
    llama: dict[str, Any] = {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    }
    tiny: dict[str, Any] = {**TINY, "num_key_value_heads": 1, "intermediate_size": 64}
    return LlamaConfig(**device.sized(llama, tiny), tie_word_embeddings=True, dtype=torch.bfloat16)


def build(name: str, where: str = device.DEVICE) -> Any:
    """Build a model on a device, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with torch.device(where):
        model = AutoModelForCausalLM.from_config(config(name), dtype=torch.bfloat16)
    return model.eval()


def closure(model: Any, batch: int, length: int) -> Callable[[], Tensor]:
    """The loss of a batch of random tokens."""
    ids = torch.randint(0, model.config.vocab_size, (batch, length), device=device.DEVICE)

    def loss() -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss  # type: ignore[no-any-return]

    return loss


class Weights(list[Tensor]):
    """A model's weights; a tensor put in becomes the model's, as in MeZO, and frees the old one."""

    def __init__(self, model: Any) -> None:
        self.parameters = list(model.parameters())
        super().__init__(parameter.data for parameter in self.parameters)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.parameters[index].data = value
        super().__setitem__(index, value)

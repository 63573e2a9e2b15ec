"""Tiny random language models and their tokenizer, for the tests of the tasks."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from fedspzo.app.examples import Example

SPECIAL = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
TEXT = ["a", "fine", "bad", "dull", "film", "was", "it", "great", "awful", "un", "##known"]
WORDS = SPECIAL + TEXT
VERBALIZERS = {"good": "great", "poor": "awful"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
EXAMPLES = [
    Example("a fine film", "good"),
    Example("dull", "poor"),
    Example("a bad bad bad dull film", "poor"),
]


def tokenizer(special: bool = False, **changes: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        inner.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", **changes}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def causal(kind: str) -> nn.Module:
    size = len(WORDS)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        return GPT2LMHeadModel(config).eval()
    if kind == "opt":
        config = OPTConfig(vocab_size=size, ffn_dim=32, word_embed_proj_dim=16, **SMALL)
        return OPTForCausalLM(config).eval()
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, intermediate_size=32, **SMALL)).eval()


def masked_bert() -> nn.Module:
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=32, **SMALL)
    return BertForMaskedLM(config).eval()


class Headless(nn.Module):
    """A model that shows no head, so that every position's logits are computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.model(**inputs)

"""Makes the masked encoder: the demo model's counterpart, trained on its text to fill in words."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AddedToken,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from fedspzo.demo import corpus
from fedspzo.demo.build import BOS, EOS, MODEL, PAD, POSITIONS, padded, train
from fedspzo.files import folder_atomic

MASK = "<mask>"
DOCUMENTS = 400_000
MASKED = 0.3


def make(folder: Path, documents: int = DOCUMENTS) -> None:
    """Write model and tokenizer to `folder`, whole or not at all: minutes on one core."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=AddedToken(MASK, lstrip=True),  # a blank belongs to the word that is masked
        model_max_length=POSITIONS,
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
    )
    model = ModernBertForMaskedLM(config)
    rows = tokenizer(list(corpus.pretraining(documents)))["input_ids"]
    pad, mask = tokenizer.pad_token_id, tokenizer.mask_token_id
    train(
        model, rows, 0, lambda batch: masked_loss(model, padded(batch, pad), pad, mask), warmup=0.1
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_atomic(folder) as temporary:
        model.eval().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def masked_loss(model: ModernBertForMaskedLM, ids: Tensor, pad: int, mask: int) -> Tensor:
    """The mean loss of what is masked: a part of the tokens, and always a document's last word."""
    real = ids != pad
    chosen = (torch.rand(ids.shape) < MASKED) & real
    chosen[torch.arange(len(ids)), real.sum(1) - 2] = True  # before the full stop
    chosen[:, 0] = False
    states = model.model(ids.masked_fill(chosen, mask), attention_mask=real.long())
    logits = model.decoder(model.head(states.last_hidden_state[chosen]))
    return torch.nn.functional.cross_entropy(logits, ids[chosen])

"""Makes the masked encoder: the demo model's counterpart, trained on its text to fill in words."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from tqdm.auto import tqdm
from transformers import (
    AddedToken,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from fedspzo.demo import corpus
from fedspzo.demo.build import BATCH, BOS, EOS, MODEL, PAD, batches

MASK = "<mask>"
DOCUMENTS = 400_000
MASKED = 0.3
PEAK_LR = 5e-3


def make(folder: Path, documents: int = DOCUMENTS) -> None:
    """Write model and tokenizer to `folder`, whole or not at all: about 7 minutes on one core."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=AddedToken(MASK, lstrip=True),  # a blank belongs to the word that is masked
        model_max_length=128,
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
    )
    model = ModernBertForMaskedLM(config)
    rows = tokenizer(list(corpus.pretraining(documents)))["input_ids"]
    train(model, rows, tokenizer)
    part = folder.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder)


def train(
    model: ModernBertForMaskedLM, rows: list[list[int]], tokenizer: PreTrainedTokenizerFast
) -> None:
    """One epoch of AdamW: a fifth of the tokens is masked, and always the document's last word."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.05
    )
    steps = math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=steps, pct_start=0.1
    )
    recent: list[float] = []
    for batch in (progress := tqdm(batches(rows, 0), total=steps, desc="masked", unit="step")):
        width = max(map(len, batch))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
        lengths = torch.tensor([len(row) for row in batch])
        chosen = (torch.rand(ids.shape) < MASKED) & (ids != pad)
        chosen[torch.arange(len(batch)), lengths - 2] = True  # before the full stop
        chosen[:, 0] = False
        states = model.model(
            ids.masked_fill(chosen, tokenizer.mask_token_id), attention_mask=(ids != pad).long()
        ).last_hidden_state
        logits = model.decoder(model.head(states[chosen]))
        loss = torch.nn.functional.cross_entropy(logits, ids[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent = [*recent[-99:], loss.item()]
        progress.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)

"""The masked language model that `compute_to_target.py` fine-tunes, made on the spot.

A small RoBERTa with normalisation before its layers, the demo's corpus and tokenizer with a mask
token added, ordinary AdamW by backpropagation. Some minutes on one core, once: the folder is kept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import AutoTokenizer, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

from fedspzo.demo import corpus
from fedspzo.demo.build import BATCH, MODEL, POSITIONS, batches

DOCUMENTS = 64_000
MASKED = 0.2
VERDICT = 3  # a document's last tokens, often its verdict, are always masked
PEAK_LR = 4e-3
MASK = "<mask>"


def masked(
    rows: list[list[int]], tokenizer: Any, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids with some masked, attention mask, and the targets: -100 where nothing is masked."""
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    attention = (ids != pad).long()
    chosen = torch.rand(ids.shape, generator=generator) < MASKED
    lengths = attention.sum(1, keepdim=True)
    chosen |= torch.arange(width) >= lengths - VERDICT
    chosen &= (ids != pad) & (ids != tokenizer.bos_token_id)
    targets = torch.where(chosen, ids, -100)
    return torch.where(chosen, tokenizer.mask_token_id, ids), attention, targets


def build(output: Path, documents: int = DOCUMENTS, seed: int = corpus.SEED) -> None:
    """Train tokenizer and model and save both; `output` appears once everything is made."""
    torch.manual_seed(seed)
    texts = list(corpus.pretraining(documents, seed))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.add_special_tokens({"mask_token": MASK})
    model = RobertaPreLayerNormForMaskedLM(
        RobertaPreLayerNormConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=8,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS + 8,  # RoBERTa counts from the padding id on
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows = tokenizer(texts)["input_ids"]
    steps = -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=steps, pct_start=0.05
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    progress = tqdm(batches(rows, seed), total=steps, desc="masked language model", unit="step")
    for batch in progress:
        ids, attention, targets = masked(batch, tokenizer, generator)
        loss = model(input_ids=ids, attention_mask=attention, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if output.exists():
        shutil.rmtree(output)
    os.replace(folder, output)

"""Trains the demo's tokenizer and language model: ``python -m fedspzo.demo.build``.

Ordinary AdamW on the text of `corpus.py`, on the CPU. This is the only place of the project that
computes gradients by backpropagation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import corpus
from .writer import HERE

MODEL = HERE / "model"
VOCABULARY = 2048
DOCUMENTS = 128_000
BATCH = 64
POSITIONS = 128
PEAK_LR = 5e-3
PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(documents: Sequence[str]) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE tokenizer of `VOCABULARY` tokens; <s> starts each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    start = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, start)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=POSITIONS,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model: 8 layers, 64 wide, 4 heads, about 0.6 M parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def batches(rows: list[list[int]], seed: int) -> Iterator[list[list[int]]]:
    """Batches of documents of similar length, so that few positions are padding.

    The documents keep their order but for a window of 50 batches.
    """
    rng = random.Random(seed)
    pool = 50 * BATCH
    for start in range(0, len(rows), pool):
        chunk = sorted(rows[start : start + pool], key=len)
        cuts = list(range(0, len(chunk), BATCH))
        rng.shuffle(cuts)
        for cut in cuts:
            yield chunk[cut : cut + BATCH]


def padded(batch: list[list[int]], pad: int) -> Tensor:
    """A batch's tokens, int64 (B, T), padded on the right."""
    width = max(map(len, batch))
    return torch.tensor([row + [pad] * (width - len(row)) for row in batch])


def next_token_loss(model: LlamaForCausalLM, batch: list[list[int]], pad: int) -> Tensor:
    """The mean loss of every token but the first, a scalar."""
    ids = padded(batch, pad)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    targets = ids[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=pad
    )


def train(
    model: nn.Module,
    rows: list[list[int]],
    seed: int,
    loss_of: Callable[[list[list[int]]], Tensor],
    *,
    warmup: float = 0.05,
) -> float:
    """One epoch of AdamW with a cosine schedule.

    Args:
        model: what trains.
        rows: the documents' tokens.
        seed: of their order.
        loss_of: a batch's loss.
        warmup: the share of the steps in which the learning rate rises.

    Returns:
        The mean loss of the last steps.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.05
    )
    steps = math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LR, total_steps=steps, pct_start=warmup
    )
    model.train()
    recent: list[float] = []
    progress = tqdm(batches(rows, seed), total=steps, desc="pretraining", unit="step")
    for batch in progress:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent = [*recent[-99:], loss.item()]
        progress.set_postfix(loss=f"{sum(recent) / len(recent):.3f}", refresh=False)
    model.eval()
    return sum(recent) / len(recent)


def build(output: Path, documents: int = DOCUMENTS, seed: int = corpus.SEED) -> float:
    """Makes tokenizer and model and saves both; returns the final training loss.

    Args:
        output: the folder, replaced as a whole once everything is made.
        documents: documents of the pretraining corpus.
        seed: seed of the corpus, the initial weights and the order of the documents.
    """
    torch.manual_seed(seed)
    texts = list(corpus.pretraining(documents, seed))
    tokenizer = train_tokenizer(texts)
    end = tokenizer.eos_token_id
    rows = [[*ids, end] for ids in tokenizer(texts)["input_ids"]]
    model = new_model(tokenizer)
    pad = tokenizer.pad_token_id
    loss = train(model, rows, seed, lambda batch: next_token_loss(model, batch, pad))
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    os.chmod(folder, 0o755)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _make_portable(folder)
    if output.exists():
        shutil.rmtree(output)
    os.replace(folder, output)
    return loss


def _make_portable(folder: Path) -> None:
    """Names the tokenizer's class so that transformers 4 knows it too; files all may read."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the demo model anew."""
    parser = argparse.ArgumentParser(prog="python -m fedspzo.demo.build", description=__doc__)
    parser.add_argument("--output", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    loss = build(options.output, options.documents)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"{options.output}: {size / 1e6:.2f} MB, training loss {loss:.3f}")


if __name__ == "__main__":
    main()

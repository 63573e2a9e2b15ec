"""Trains the demo's tokenizer and language model: ``python -m fedspzo.demo.build``.

It pretrains with AdamW on the text of `corpus.py`, on the CPU, by backpropagation.
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
    """Train a byte-level BPE tokenizer of `VOCABULARY` tokens.

    It lower-cases texts, and puts <s> before each.
    """
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
    """Create an untrained model: 8 layers, width 64, 4 heads, about 0.6 million parameters."""
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
    """Yield batches of documents of similar length, so that few positions are padding.

    The documents keep their order, except within windows of 50 batches.

    Args:
        rows: the documents' tokens.
        seed: the seed of the order.
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
    """Return a batch's tokens, int64 (B, T), padded on the right."""
    width = max(map(len, batch))
    return torch.tensor([row + [pad] * (width - len(row)) for row in batch])


def next_token_loss(model: LlamaForCausalLM, batch: list[list[int]], pad: int) -> Tensor:
    """Return the mean cross entropy over all tokens but the first, in nats: a scalar."""
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
    """Train for one epoch, by AdamW with a cosine schedule.

    Args:
        model: the model.
        rows: the documents' tokens.
        seed: the seed of the documents' order.
        loss_of: returns the loss of a batch, a scalar.
        warmup: share of the steps in which the learning rate rises. Default 0.05.

    Returns:
        The mean loss of the last 100 steps.
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
    """Train and save the tokenizer and the model.

    Args:
        output: the folder. It is replaced as a whole at the end.
        documents: number of documents in the pretraining corpus.
        seed: the seed of the corpus, the initial weights and the order of the documents.

    Returns:
        The final training loss.
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
    """Name a tokenizer class that transformers 4 knows too, and let all users read the files."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the demo model again."""
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

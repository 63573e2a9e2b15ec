"""What the docs' blocks of Python take for granted: a model, its data and its task, all small.

`names` is for all blocks, and `names_for` adds what a block of another kind of loop means.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

SOURCE = str(files("fedspzo.demo") / "model")
WORDS = {"positive": " great", "negative": " terrible"}
Row = dict[str, Any]


class Sentiment:
    """Praise or blame, by the word after "It was"; a row has a text and the word's number."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.words = [tokenizer(word).input_ids[-1] for word in WORDS.values()]

    def collate(self, rows: list[Row]) -> Any:
        batch = self.tokenizer(
            [row["text"] for row in rows],
            padding="max_length",
            truncation=True,
            max_length=16,
            return_tensors="pt",
        )
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits[:, -1, self.words]
        return cross_entropy(logits, batch["labels"], reduction="none")

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.losses(model, batch).mean()

    def evaluate(self, model: nn.Module, rows: list[Row]) -> dict[str, float]:
        with torch.no_grad():
            return {"loss": float(self.loss(model, self.collate(rows)))}


def causal(task: Sentiment, rows: list[Row]) -> Any:
    """A batch as a causal language model takes it: every token is a label, but for padding."""
    batch = task.collate(rows)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


def names(folder: Path) -> dict[str, Any]:
    """Return the names that a page's blocks may use without having made them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

    from fedspzo import split

    model = AutoModelForCausalLM.from_pretrained(SOURCE)
    tokenizer = AutoTokenizer.from_pretrained(SOURCE, padding_side="left")
    task = Sentiment(tokenizer)
    lines = (Path(str(files("fedspzo.demo"))) / "data/train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:36]]
    numbers = {label: number for number, label in enumerate(WORDS)}
    train = [{"text": f"{r['text']} It was", "label": numbers[r["label"]]} for r in rows[:32]]
    test = [{"text": f"{r['text']} It was", "label": numbers[r["label"]]} for r in rows[32:]]
    parts = [train[start : start + 4] for start in range(0, len(train), 4)]
    return {
        "model": model,
        "tokenizer": tokenizer,
        "blocks": split(model),
        "task": task,
        "train": train,
        "test": test,
        "labels": [row["label"] for row in train],
        "examples_by_client": parts,
        "examples": parts[:3],
        "batch": causal(task, train[:4]),
        "loader": [causal(task, part) for part in parts[:2]],
        "micro_batches": [causal(task, part) for part in parts[:2]],
        "dataset": train,
        "collate": task.collate,
        "losses": task.losses,
        "args": TrainingArguments(
            str(folder / "trainer"), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True
        ),
    }


def names_for(block: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return the names that mean something else in a block than in most.

    Args:
        block: the block's text.
        known: the names before it, `names` among them.
    """
    from transformers import AutoModelForCausalLM, DistilBertConfig
    from transformers import DistilBertForSequenceClassification as Classifier

    task = known["task"]
    if "model.classifier" in block:
        size = {"n_layers": 2, "dim": 16, "hidden_dim": 32, "n_heads": 2, "vocab_size": 64}
        return {"model": Classifier(DistilBertConfig(**size))}
    if "for batch, labels in loader" in block:
        batches = [task.collate(part) for part in known["examples"]]
        loader = [(batch, batch.pop("labels")) for batch in batches]
        return {"model": AutoModelForCausalLM.from_pretrained(SOURCE), "loader": loader}
    if "train_dataset=" in block:
        rows = [causal(task, [row]) for row in known["dataset"][:8]]
        tokens = [{name: value[0] for name, value in row.items()} for row in rows]
        return {"train": tokens, "test": tokens}
    return {}

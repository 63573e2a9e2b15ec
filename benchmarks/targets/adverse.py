"""The decoder where training goes wrong more easily, or trains adapters that are zero at first.

There a guard shows what it is worth.
"""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from fedspzo.app import config as configuration
from fedspzo.app import models
from fedspzo.app.config import Config, ModelConfig
from fedspzo.app.data import read_splits
from fedspzo.app.pretrained import save_pretrained
from fedspzo.files import folder_atomic
from fedspzo.seeds import derive

from .problems import PROBLEMS, ROOT, Loaded, Problem

DECODER = next(problem for problem in PROBLEMS if problem.name == "decoder")
LORA = ROOT / "examples/lora/config.toml"
CONFIDENT = ROOT / "runs/confident_decoder"
STEPS = 300
"""AdamW's steps by which the confident model is trained."""
WRONG_LABELS = 0.2
"""Share of the training examples whose label is wrong, where some are."""


def _bfloat16() -> Config:
    config = DECODER.config()
    return replace(config, model=replace(config.model, dtype="bfloat16"))


def _peft() -> str | None:
    return None if find_spec("peft") else "peft: pip install 'fedspzo[peft]'"


def _lora() -> Config:
    return replace(DECODER.config(), model=configuration.load(LORA).model)


def _confident() -> Config:
    """The words of the two labels are exchanged, for a model that is sure of them."""
    config = DECODER.config()
    if not CONFIDENT.is_dir():
        _make_confident(config, CONFIDENT)
    words = config.task.verbalizers
    exchanged = dict(zip(words, reversed(words.values()), strict=True))
    task = replace(config.task, verbalizers=exchanged)
    return replace(config, model=ModelConfig(name=str(CONFIDENT)), task=task)


def _make_confident(config: Config, folder: Path) -> None:
    splits = read_splits(config.data, config.task)
    model, task, _ = models.load(config, splits)
    train = task.encode(splits.train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        chosen = random.Random(derive(0, step)).sample(train, 16)
        optimizer.zero_grad()
        task.loss(model, task.collate(chosen)).backward()
        optimizer.step()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder_atomic(folder) as temporary:
        save_pretrained(model, task.tokenizer, temporary)


def _with_wrong_labels(loaded: Loaded) -> Loaded:
    """The same, with the other label for `WRONG_LABELS` of the training examples."""
    draw = random.Random(0)
    train = [
        replace(example, label=1 - example.label) if draw.random() < WRONG_LABELS else example
        for example in loaded.train
    ]
    return replace(loaded, train=train)


def _decoder(name: str, what: str, **fields: object) -> Problem:
    title = f"{DECODER.title}, {what}"
    return replace(DECODER, name=f"decoder_{name}", title=title, **fields)  # type: ignore[arg-type]


ADVERSE = (
    _decoder("pairs", "batches of 2", batch=2),
    _decoder("ones", "batches of 1", batch=1),
    _decoder("bfloat16", "bfloat16", config=_bfloat16),
    _decoder("wrong_labels", "a fifth of the labels wrong", change=_with_wrong_labels),
    _decoder("confident", "the two words exchanged after training", config=_confident),
    _decoder("lora", "LoRA adapters", config=_lora, needs=_peft),
)

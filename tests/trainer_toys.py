"""A tiny language model's data and training arguments for the tests of Trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCAB = 32


def rows(count: int = 16) -> list[dict[str, Tensor]]:
    """Rows of 8 tokens, of which the first 0 to 5 are no labels: 3 to 8 labels a row."""
    found = []
    for i in range(count):
        ids = (torch.arange(8) * (i % 3 + 1) + i) % VOCAB
        labels = ids.clone()
        labels[: i % 6] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def arguments(folder: Path, **settings: Any) -> hf.TrainingArguments:
    """Arguments of 6 steps of 2 rows in a shuffled order, without reports."""
    return hf.TrainingArguments(
        str(folder),
        **{
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "logging_steps": 1,
            "seed": 3,
            **settings,
        },
    )

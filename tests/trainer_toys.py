"""A tiny language model's data and training arguments for the tests of Trainers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from families import BERT_LIKE
from spzo_toys import llama
from torch import Tensor, nn

from fedspzo.integrations.transformers import SPZOTrainer
from fedspzo.journal import digest

VOCAB = 32
FEW = {"perturbations": (1, 2)}
"""Few directions, as most tests ask for no progress."""

OF_THE_TRAINER = (
    *("spzo", "at", "optimizers", "callbacks", "eval_dataset", "train_dataset", "model_init"),
    *("compute_loss_func", "compute_metrics", "data_collator"),
)


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


def trainer(folder: Path, model: nn.Module | None = None, **settings: Any) -> SPZOTrainer:
    """A Trainer of the tiny LLaMA. What is no argument of the Trainer is a training argument."""
    own = {name: settings.pop(name) for name in OF_THE_TRAINER if name in settings}
    if "model_init" not in own:
        model = llama() if model is None else model
    args = arguments(folder, **settings)
    return SPZOTrainer(model, args, **{"train_dataset": rows(), "spzo": FEW, **own})


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def bits(model: nn.Module) -> str:
    return digest(model.named_parameters())


def logged(made: hf.Trainer, name: str) -> list[float]:
    return [entry[name] for entry in made.state.log_history if name in entry]


def tagger() -> nn.Module:
    """It is given the number of all labels, and returns its own batch's mean all the same."""
    torch.manual_seed(0)
    return hf.BertForTokenClassification(hf.BertConfig(**BERT_LIKE, num_labels=VOCAB))


def in_a_group(rank: int) -> dict[str, Any]:
    """Train in one of two processes, which begin with other weights and draw other rows."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    model = llama()
    with torch.no_grad():
        model.lm_head.weight += rank
    folder = Path(tempfile.mkdtemp())
    made = trainer(folder, model, max_steps=3, lr_scheduler_type="constant")
    made.train()
    means = trainer(folder, tagger(), max_steps=2, lr_scheduler_type="constant")
    means.train()
    return {
        "means": logged(means, "loss"),
        "digest of means": bits(means.model),
        "digest": bits(made.model),
        "losses": logged(made, "loss"),
        "wrapped": type(made.model_wrapped).__name__,
        "head": made.model.lm_head.weight[0].tolist(),
    }

"""Tasks: they encode examples, and compute losses and accuracies.

A `Task` encodes examples once (`encode`), pads them to a batch (`collate`), computes a batch's loss
(`loss`), and measures a model (`evaluate`). Batches are padded on the right, whatever the
tokenizer's side is. Positions then count from 0 in every model, causal or not, and padding stands
behind all tokens that are read. Only generation pads on the left (`generation`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.errors import InputError

from .examples import Example
from .measures import Measured
from .waiting import Count

EVALUATION_BATCH = 32
"""Number of rows in a batch of the evaluation."""
AT_ONCE = 1000
"""Number of texts that a tokenizer gets at a time."""


@dataclass(frozen=True)
class Encoded:
    """An example as token ids.

    Attributes:
        ids: the token ids.
        label: the class number. Default 0, also for language modelling.
        position: position of the token whose logits answer the prompt. Default -1: the last one.
        answer: the answer as a text. Default "": only a completion has one.
    """

    ids: tuple[int, ...]
    label: int = 0
    position: int = -1
    answer: str = ""


Batch = dict[str, Tensor]


class Task(ABC):
    """The base class of the tasks. It pads batches, computes losses, and evaluates.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: number of tokens to which an example is cut, with special tokens and template.

    Attributes:
        encoded: the number of texts encoded so far.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.encoded = Count("texts")
        pad = tokenizer.pad_token_id
        # any token serves a model without a padding token, as the mask hides it
        self.pad_id = int(pad if pad is not None else tokenizer.eos_token_id or 0)

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the examples as token ids, cut to `max_length`. Counts them in `encoded`."""

    @abstractmethod
    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return float32 logits (N, classes) and int64 class numbers (N,) of N predictions."""

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Pad examples to a batch.

        Returns:
            `input_ids` and `attention_mask` (B, T), `labels` and `positions` (B,); all int64.
        """
        longest = max(len(example.ids) for example in examples)
        ids = torch.full((len(examples), longest), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([example.label for example in examples]),
            "positions": torch.tensor([e.position % len(e.ids) for e in examples]),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross entropy of the batch's predictions, in nats: a float32 scalar."""
        return F.cross_entropy(*self.scores(model, batch))

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each example's loss, the mean over its predictions, in nats: float32 (B,)."""
        return F.cross_entropy(*self.scores(model, batch), reduction="none")

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in the order of the class numbers. It is empty without classes."""
        return ()

    @property
    def rows_per_example(self) -> int:
        """Number of rows that an example takes in a batch."""
        return 1

    def evaluate(self, model: nn.Module, examples: Sequence[Encoded]) -> dict[str, float]:
        """Return the mean "loss" (nats) and "accuracy" (0 to 1) over all predictions.

        Dropout is off.
        """
        measured = self.measure(model, examples)
        return {"loss": measured.loss, "accuracy": measured.accuracy}

    @torch.no_grad()
    def measure(self, model: nn.Module, examples: Sequence[Encoded]) -> Measured:
        """Measure the model's predictions, with dropout off."""
        ordered = sorted(examples, key=lambda example: len(example.ids))
        total = correct = count = 0.0
        size = len(self.classes)
        pairs = torch.zeros(size * size, dtype=torch.int64)
        at_once = max(1, EVALUATION_BATCH // self.rows_per_example)
        with evaluating(model):
            for start in range(0, len(ordered), at_once):
                batch = self.collate(ordered[start : start + at_once])
                logits, labels = self.scores(model, batch)
                chosen = logits.argmax(-1)
                total += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += (chosen == labels).sum().item()
                count += len(labels)
                if size:
                    both = (labels * size + chosen).cpu()
                    pairs += torch.bincount(both, minlength=size * size)
        rows = tuple(map(tuple, pairs.reshape(size, size).tolist())) if size else None
        return Measured(loss=total / count, accuracy=correct / count, confusion=rows)

    def score_answers(self, model: nn.Module, examples: Sequence[Encoded]) -> dict[str, float]:
        """Generate answers, and return their scores by name. Empty: the task generates none."""
        return {}

    def _logits(self, model: nn.Module, batch: Batch, **extra: Any) -> tuple[Tensor, Batch]:
        """Return the model's logits, and the batch on the model's device."""
        batch = on_device(model, batch)
        return model(**model_inputs(batch), **extra).logits, batch


class HeadClassification(Task):
    """Classifies by the head of an `AutoModelForSequenceClassification` model.

    Args:
        tokenizer: a Hugging Face tokenizer.
        labels: the labels, in the order of the head's outputs.
        max_length: number of tokens to which a text is cut.
        names: the head's label for each label of the data. Default None: they are the same.
    """

    def __init__(
        self,
        tokenizer: Any,
        labels: Sequence[str],
        max_length: int,
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self._outputs = tuple(labels)
        names = {label: label for label in labels} if names is None else names
        self.labels = {label: labels.index(name) for label, name in names.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels of the head's outputs."""
        return self._outputs

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the texts as token ids, cut to `max_length`. Without a label it is 0."""
        return [
            Encoded(tuple(ids), 0 if example.label is None else self.labels[example.label])
            for ids, example in zip(_ids(self, examples), examples, strict=True)
        ]

    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the head's float32 logits (B, labels), and class numbers (B,)."""
        logits, batch = self._logits(model, batch)
        return logits.float(), batch["labels"]


class LanguageModelling(Task):
    """Predicts each next token with a causal model. Its accuracy is that of the likeliest token."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the texts as token ids. Texts of a single token are left out.

        Raises:
            InputError: all texts are single tokens.
        """
        encoded = [Encoded(tuple(ids)) for ids in _ids(self, examples) if len(ids) > 1]
        if not encoded:
            raise InputError("[data] every text is a single token; give longer texts")
        return encoded

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each text's mean loss over its tokens, in nats: float32 (B,)."""
        counts = batch["attention_mask"].sum(1) - 1
        return mean_of_each(super().losses(model, batch), counts)

    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return float32 logits (N, vocabulary) and next tokens (N,).

        N is the number of positions in the batch that have a next token.
        """
        logits, batch = self._logits(model, batch)
        real = batch["attention_mask"][:, 1:].bool()
        return logits[:, :-1][real].float(), batch["input_ids"][:, 1:][real]


def mean_of_each(losses: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of each example's losses, (B,).

    Args:
        losses: the losses of all predictions, (N,), those of an example together.
        counts: number of predictions of each example, int64 (B,).
    """
    return torch.stack([part.mean() for part in losses.split(counts.tolist())])


def on_device(model: nn.Module, batch: Batch) -> Batch:
    """Return the batch on the model's device."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def model_inputs(batch: Batch) -> Batch:
    """Return what the model reads of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _ids(task: Task, examples: Sequence[Example]) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(examples), AT_ONCE):
        texts = [example.text for example in examples[start : start + AT_ONCE]]
        ids += task.tokenizer(texts, truncation=True, max_length=task.max_length).input_ids
        task.encoded.done += len(texts)
    return ids

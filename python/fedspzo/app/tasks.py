"""What a model learns: rows to batches, a batch to a loss, examples to loss and accuracy.

A `Task` encodes rows once (`encode`), pads encoded examples to a batch (`collate`), gives the
scalar loss of a batch (`loss`) and measures a model (`evaluate`). Batches are padded on the right
whatever the tokenizer prefers: positions then count from 0 in every model, causal or not, and
padding stands after everything that is read.
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

from .data import Example
from .prompt_head import head_at

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    `label` is its class number (0 for language modelling), `position` the token whose logits
    answer the prompt (-1: the last one).
    """

    ids: tuple[int, ...]
    label: int = 0
    position: int = -1


Batch = dict[str, Tensor]


class Task(ABC):
    """Common to all tasks: padding and evaluation.

    Args:
        tokenizer: A Hugging Face tokenizer.
        max_length: Tokens an example is cut to, special tokens and template included.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        pad = tokenizer.pad_token_id
        # Models without a padding token never see what stands there: the mask hides it.
        self.pad_id = int(pad if pad is not None else tokenizer.eos_token_id or 0)

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The examples as token ids, cut to `max_length`."""

    @abstractmethod
    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Float32 logits (N, classes) and class numbers (N,) of all predictions in the batch."""

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """`input_ids` and `attention_mask` (B, T), `labels` and `positions` (B,); all int64."""
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
        """Mean cross entropy of the batch's predictions, a float32 scalar."""
        return F.cross_entropy(*self.scores(model, batch))

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Each example's loss, its mean over the example's predictions, float32 (B,)."""
        return F.cross_entropy(*self.scores(model, batch), reduction="none")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Encoded]) -> dict[str, float]:
        """Mean `loss` (nats) and `accuracy` (0 to 1) over all predictions, with dropout off."""
        ordered = sorted(examples, key=lambda example: len(example.ids))
        total = correct = count = 0.0
        with evaluating(model):
            for start in range(0, len(ordered), EVALUATION_BATCH):
                batch = self.collate(ordered[start : start + EVALUATION_BATCH])
                logits, labels = self.scores(model, batch)
                total += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += (logits.argmax(-1) == labels).sum().item()
                count += len(labels)
        return {"loss": total / count, "accuracy": correct / count}

    def _logits(self, model: nn.Module, batch: Batch, **extra: Any) -> tuple[Tensor, Batch]:
        """The model's logits, and the batch on its device."""
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return model(**inputs, **extra).logits, batch


class PromptClassification(Task):
    """Classification by the word that a language model puts after, or inside, a template.

    The loss is the cross entropy over the verbalizers' logits alone, at the last token of the
    prompt (causal model) or at the template's {mask} (masked model).

    Args:
        tokenizer: A Hugging Face tokenizer.
        template: Text with {text} once and, for a masked model, {mask} once.
        verbalizers: Label to word. A blank is put before the word; with it, it must be one token.
        max_length: Tokens a prompt is cut to; what is cut is the end of {text}, never the template.

    Raises:
        InputError: for a word of several or unknown tokens, two words of one token, a template
            that leaves no room for text, a tokenizer without a mask token.
    """

    def __init__(
        self, tokenizer: Any, template: str, verbalizers: Mapping[str, str], max_length: int
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.masked = "{mask}" in template
        if self.masked:
            if tokenizer.mask_token is None:
                raise InputError(
                    f"[task] template is {template!r}, but the model's tokenizer has no mask "
                    "token; remove {mask} (causal model) or name a masked model"
                )
            # The text may hold the mask token too: the template's is the first or the last one.
            self.mask_is_last = template.index("{mask}") > template.index("{text}")
            template = template.replace("{mask}", tokenizer.mask_token)
        else:
            template = template.rstrip()  # The blank belongs to the word.
        self.before, self.after = template.split("{text}")
        self.labels = {label: number for number, label in enumerate(verbalizers)}
        self.words = self._words(verbalizers)
        if len(self._prompt("")) >= max_length:
            raise InputError(
                f"[data] max_length is {max_length}, but the template alone takes "
                f"{len(self._prompt(''))} tokens; raise max_length or shorten the template"
            )

    def _words(self, verbalizers: Mapping[str, str]) -> Tensor:
        # A word's token depends on what stands before it ("▁great", "Ġgreat", "great"), so it is
        # read off in its place, as what the template's end continued by the word adds.
        context = (self.after or self.before).split(self.tokenizer.mask_token or "\0")[0].rstrip()
        prefix = self.tokenizer(context, add_special_tokens=False).input_ids
        owner: dict[int, str] = {}
        for label, word in verbalizers.items():
            text = f"{context} {word.strip()}"
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            new = ids[len(prefix) :] if ids[: len(prefix)] == prefix else ids
            where = f"[task.verbalizers] {label} is {word!r}"
            if len(new) != 1:
                parts = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(new)))
                raise InputError(
                    f"{where}, which the model's tokenizer reads as {len(new)} tokens ({parts}); "
                    "choose a word that is one token"
                )
            if new[0] == self.tokenizer.unk_token_id:
                raise InputError(f"{where}, a word the model's tokenizer does not know; choose one")
            if new[0] in owner:
                raise InputError(
                    f"{where}, the same token as the verbalizer of {owner[new[0]]!r}; "
                    "choose another word"
                )
            owner[new[0]] = label
        return torch.tensor(list(owner))

    def _prompt(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(self.before + text + self.after).input_ids
        if not self.masked and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()  # An appended end-of-text token would stand where the word belongs.
        return ids

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The prompts as token ids, the text cut to fit."""
        return [self._encode(example) for example in examples]

    def _encode(self, example: Example) -> Encoded:
        text = example.text
        ids = self._prompt(text)
        while len(ids) > self.max_length:
            text = text[: min(len(text) - 1, len(text) * self.max_length // len(ids))].rstrip()
            ids = self._prompt(text)
        position = -1
        if self.masked:
            places = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
            position = places[-1 if self.mask_is_last else 0]
        return Encoded(tuple(ids), self.labels[example.label or ""], position)

    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, labels) of the verbalizers, and labels (B,)."""
        with head_at(model, batch["positions"], self.words):
            logits, batch = self._logits(model, batch)
        columns = (
            batch["positions"] if logits.shape[1] > 1 else torch.zeros_like(batch["positions"])
        )
        rows = torch.arange(len(columns), device=logits.device)
        answers = logits[rows, columns].float()
        return answers[:, self.words.to(logits.device)], batch["labels"]


class HeadClassification(Task):
    """Classification by the head of an `AutoModelForSequenceClassification` model.

    Args:
        tokenizer: A Hugging Face tokenizer.
        labels: The labels, in the order of the head's outputs.
        max_length: Tokens a text is cut to.
    """

    def __init__(self, tokenizer: Any, labels: Sequence[str], max_length: int) -> None:
        super().__init__(tokenizer, max_length)
        self.labels = {label: number for number, label in enumerate(labels)}

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The texts as token ids."""
        return [
            Encoded(tuple(ids), self.labels[example.label or ""])
            for ids, example in zip(_ids(self, examples), examples, strict=True)
        ]

    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, labels) and labels (B,)."""
        logits, batch = self._logits(model, batch)
        return logits.float(), batch["labels"]


class LanguageModelling(Task):
    """Prediction of each next token by a causal model; accuracy is that of the likeliest token."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """The texts as token ids; a text of a single token predicts nothing and is left out."""
        encoded = [Encoded(tuple(ids)) for ids in _ids(self, examples) if len(ids) > 1]
        if not encoded:
            raise InputError("[data] every text is a single token; give longer texts")
        return encoded

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Each text's mean loss over its own tokens, float32 (B,)."""
        counts = (batch["attention_mask"].sum(1) - 1).tolist()
        return torch.stack([part.mean() for part in super().losses(model, batch).split(counts)])

    def scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, vocabulary) and next tokens (N,) of the N places that have a next token."""
        logits, batch = self._logits(model, batch)
        real = batch["attention_mask"][:, 1:].bool()
        return logits[:, :-1][real].float(), batch["input_ids"][:, 1:][real]


def _ids(task: Task, examples: Sequence[Example]) -> list[list[int]]:
    texts = [example.text for example in examples]
    ids: list[list[int]] = task.tokenizer(
        texts, truncation=True, max_length=task.max_length
    ).input_ids
    return ids

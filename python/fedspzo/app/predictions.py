"""What a saved model predicts of texts: labels with probabilities, or texts that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.errors import InputError

from .completion import Completion
from .examples import Example
from .generation import greedy
from .models import encode
from .saved_model import SavedModel
from .tasks import EVALUATION_BATCH, Encoded, Task

CONTINUATION = 32
"""Number of tokens by which a language model continues a text."""

Row = dict[str, Any]


def predict(opened: SavedModel, texts: Sequence[str], tokens: int | None = None) -> list[Row]:
    """Return what the model predicts of each text, in the order of the texts.

    Args:
        opened: the model.
        texts: the texts, none of them blank.
        tokens: the most tokens of a text that the model writes. Default None: of an answer, as many
            as the longest in the run's test examples has; of a continuation, `CONTINUATION`.

    Returns:
        For a classifier "label", its "probability", and the "probabilities" of all labels by name;
        else "answer".

    Raises:
        InputError: `tokens` leaves no room for a text, or is given to a classifier.
    """
    model, task = opened.model, opened.task
    examples = [Example(text) for text in texts]
    if not task.classes:
        if isinstance(task, Completion):
            length = opened.saved.answer_tokens if tokens is None else tokens
            answers = task.answers(model, task.encode_prompts(examples, max(length, 1)))
        else:
            answers = _continued(opened, examples, CONTINUATION if tokens is None else tokens)
        return [{"answer": answer.strip()} for answer in answers]
    if tokens is not None:
        raise InputError(f"tokens is {tokens}, but the model chooses a label; leave it out")
    every = probabilities(task, model, encode(str(opened.folder), task, model, examples))
    rows = []
    for values in every.tolist():
        best = max(range(len(values)), key=values.__getitem__)
        named = dict(zip(task.classes, values, strict=True))
        rows.append(
            {"label": task.classes[best], "probability": values[best], "probabilities": named}
        )
    return rows


@torch.no_grad()
def probabilities(task: Task, model: nn.Module, examples: Sequence[Encoded]) -> Tensor:
    """Return the probability of each class, float32 (N, classes), with dropout off.

    It is the softmax over the task's scores, of which the loss is the cross entropy.
    """
    order = sorted(range(len(examples)), key=lambda number: len(examples[number].ids))
    found = torch.zeros(len(examples), len(task.classes))
    at_once = max(1, EVALUATION_BATCH // task.rows_per_example)
    with evaluating(model):
        for start in range(0, len(order), at_once):
            numbers = order[start : start + at_once]
            scores, _ = task.scores(model, task.collate([examples[n] for n in numbers]))
            found[numbers] = scores.softmax(-1).cpu()
    return found


def _continued(opened: SavedModel, examples: Sequence[Example], tokens: int) -> list[str]:
    """Continue texts greedily, each by at most `tokens` tokens. A long text loses its start."""
    model, task = opened.model, opened.task
    tokenizer = task.tokenizer
    if tokens >= task.max_length:
        raise InputError(
            f"tokens is {tokens}, which leaves no room for a text in {task.max_length}; give at"
            f" most {task.max_length - 1}"
        )
    end = tokenizer.eos_token_id
    prompts: list[list[int]] = tokenizer([example.text for example in examples]).input_ids
    for ids in prompts:
        if len(ids) > 1 and ids[-1] == end:
            ids.pop()
        del ids[: -(task.max_length - tokens)]
    found: list[str] = []
    for start in range(0, len(prompts), EVALUATION_BATCH):
        batch = prompts[start : start + EVALUATION_BATCH]
        ends = set() if end is None else {int(end)}
        new = greedy(model, batch, room=tokens, ends=ends, pad=task.pad_id)
        found += [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    return found

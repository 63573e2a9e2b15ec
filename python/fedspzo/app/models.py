"""Loads the model of a config, and creates its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedspzo.blocks.output_rows import can_untie_rows, untie_rows
from fedspzo.errors import InputError, explained

from .completion import Completion
from .config import Config
from .data import Splits
from .examples import Example
from .head_labels import head_names
from .model_source import Source
from .pretrained import load_from
from .prompts import PromptClassification
from .recipe import Recipe
from .sections import TaskConfig
from .tasks import Encoded, HeadClassification, LanguageModelling, Task


def load(config: Config, splits: Splits) -> tuple[nn.Module, Task, Recipe]:
    """Load the config's model onto its device, in evaluation mode, and create its task.

    The rows of a prompt's verbalizers become separate parameters of the output layer. A
    checkpoint's classification head keeps its labels (`head_names`). One that the checkpoint lacks
    is initialized from [federation] seed, so that all participants start from the same bits.

    Raises:
        InputError: the model cannot be loaded, or does not fit the task.
    """
    name = config.model.name
    device = _device(config.model.device)
    recipe = Recipe.of(config, splits)
    source = Source.of(name)
    names = {label: label for label in splits.labels}
    if recipe.kind == "classification" and not recipe.new_head:
        head = source.head()
        if head:
            names = head_names(splits.labels, head, config.task.labels)
            recipe = replace(recipe, labels=head)
        elif config.task.labels:
            raise InputError(
                f"[task] labels is given, but {name!r} has no classification head, so a new one"
                " gets the labels of the data; remove labels"
            )
        source = replace(source, headed=bool(head))
    loaded = load_from(source, recipe)
    model, task = prepare(
        name,
        loaded,
        config.task,
        max_length=config.data.max_length,
        labels=recipe.labels,
        names=names,
        device=device,
    )
    plain = recipe.adapter is None and can_untie_rows(model)
    if isinstance(task, PromptClassification) and plain:
        recipe = replace(recipe, rows=tuple(task.words.tolist()))
        untie_rows(model, recipe.rows)
    return model, task, recipe


def prepare(
    name: str,
    loaded: tuple[Any, Any],
    settings: TaskConfig,
    *,
    max_length: int,
    labels: tuple[str, ...],
    names: Mapping[str, str],
    device: str,
) -> tuple[nn.Module, Task]:
    """Check a model, move it to its device, and create its task.

    Args:
        name: the model, for messages.
        loaded: the model and its tokenizer.
        settings: the section [task].
        max_length: tokens to which an example is cut, unless the model takes fewer.
        labels: labels of a classification head, in the order of its outputs.
        names: the head's label for each label of the data.
        device: "cpu", "cuda" or "auto".

    Raises:
        InputError: the model is not sound, or does not fit the task.
    """
    model, tokenizer = loaded
    check_finite(name, model)
    model.to(_device(device))
    with working(name, "tokenizer"):
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise InputError(
                f"[model] name is {name!r}, whose tokenizer has {len(tokenizer)} tokens but whose "
                f"model has {rows}; name a model saved with its own tokenizer"
            )
        longest = _longest(name, model, tokenizer, max_length)
        return model, _task(settings, tokenizer, longest, labels, names)


def working(name: str, part: str) -> AbstractContextManager[None]:
    """Return a context in which any exception says that a part of the model does not work.

    Args:
        name: the model.
        part: "tokenizer", or another part.
    """
    return explained(
        f"[model] name is {name!r}, whose {part} does not work",
        "name a model whose config.json, weights and tokenizer were saved together",
    )


def encode(name: str, task: Task, model: nn.Module, examples: Sequence[Example]) -> list[Encoded]:
    """Encode examples, and check that the model has an embedding for each token.

    Raises:
        InputError: the tokenizer fails, or gives a token that the model has not.
    """
    with working(name, "tokenizer"):
        encoded = task.encode(examples)
        rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        largest = max(max(example.ids, default=0) for example in encoded)
        if largest >= rows:
            raise InputError(
                f"[model] name is {name!r}, whose tokenizer gives the token {largest} but whose"
                f" model has {rows}; name a model saved with its own tokenizer"
            )
    return encoded


def check_finite(name: str, model: nn.Module) -> None:
    """Raise InputError if a weight of a base model is not finite."""
    for key, weight in model.named_parameters():
        bad = weight.numel() - int(torch.isfinite(weight).sum())
        if bad:
            raise InputError(
                f"[model] name is {name!r}, of whose weight {key!r} {bad} of {weight.numel()}"
                f" elements are not finite in {str(weight.dtype).removeprefix('torch.')}; give a"
                " sound model, or a dtype with a wider range"
            )


def _device(wanted: str) -> str:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise InputError(
            '[model] device is "cuda", but torch finds no CUDA device; set "cpu" or "auto"'
        )
    return "cuda" if there and wanted != "cpu" else "cpu"


def _longest(name: str, model: Any, tokenizer: Any, max_length: int) -> int:
    """Return the most tokens of an example: `max_length`, or the model's limit if smaller."""
    limits = [max_length]
    for where, key, limit in (
        ("tokenizer_config.json", "model_max_length", tokenizer.model_max_length),
        ("config.json", "max_position_embeddings", _positions(model)),
    ):
        if limit is None:
            continue
        if not isinstance(limit, int | float) or not limit >= 2:
            raise InputError(
                f"[model] name is {name!r}: {key} in {where} is {repr(limit)[:60]};"
                " correct it to the most tokens that the model can take, at least 2"
            )
        limits.append(int(min(limit, max_length)))
    return min(limits)


def _positions(model: Any) -> object:
    return getattr(model.config, "max_position_embeddings", None)


def _task(
    settings: TaskConfig,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...],
    names: Mapping[str, str],
) -> Task:
    if settings.type == "prompt":
        return PromptClassification(
            tokenizer, settings.template, settings.verbalizers, max_length, chat=settings.chat
        )
    if settings.type == "classification":
        return HeadClassification(tokenizer, labels, max_length, names)
    if settings.type == "completion":
        return Completion(tokenizer, max_length, settings.metric_rows, chat=settings.chat)
    return LanguageModelling(tokenizer, max_length)

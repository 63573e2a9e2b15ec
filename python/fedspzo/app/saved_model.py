"""Opens a model that a run has saved, with its task, from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fedspzo.errors import InputError
from fedspzo.journal.records import digest

from .adapters import is_adapter
from .head_labels import head_names
from .model_source import Source
from .models import prepare
from .pretrained import load_from
from .saved_task import TASK_FILE, SavedTask, model_folder
from .tasks import Task


@dataclass(frozen=True)
class SavedModel:
    """A model that a run has saved.

    Attributes:
        model: the model, on its device, in evaluation mode.
        task: its task.
        saved: what its folder says of it.
        folder: the folder.
    """

    model: nn.Module
    task: Task
    saved: SavedTask
    folder: Path


def open_saved(folder: Path, *, base: str | None = None, device: str = "auto") -> SavedModel:
    """Open a model that `fedspzo run` or `fedspzo replay` has saved.

    Args:
        folder: the model's folder, or a run's folder with `model` in it.
        base: the base model of adapters. Default None: the one that adapter_config.json names.
        device: "cpu", "cuda" or "auto".

    Raises:
        InputError: a file is missing or damaged, or the base is not the run's.
    """
    folder = model_folder(folder)
    saved = SavedTask.read(folder)
    adapted = is_adapter(folder)
    if adapted != (saved.recipe.adapter is not None):
        holds = "adapters" if adapted else "a whole model"
        raise InputError(f"'{folder}': holds {holds}, and {TASK_FILE} says otherwise; restore it")
    if base is not None and not adapted:
        raise InputError(f"base is {base!r}, but '{folder}' holds a whole model; leave it out")
    source = Source.of(str(folder))
    names: dict[str, str] = {}
    labels = saved.recipe.labels
    if saved.recipe.kind == "classification":
        if not adapted:
            source = replace(source, headed=True)
            head = source.head()
            if head != labels:
                raise InputError(
                    f"'{folder}': config.json has the labels {list(head)}, but {TASK_FILE}"
                    f" {list(labels)}; restore one of them"
                )
        names = {label: label for label in labels}
        names |= head_names(tuple(saved.task.labels), labels, saved.task.labels)
    model, task = prepare(
        str(folder),
        load_from(source, saved.recipe, base),
        saved.task,
        max_length=saved.data.max_length,
        labels=labels,
        names=names,
        device=device,
    )
    if adapted and digest(model.named_parameters()) != saved.digest:
        raise InputError(
            f"'{folder}': its adapters and their base have other weights together than in the run"
            f" (digest {saved.digest}); give the run's base model by --base"
        )
    return SavedModel(model, task, saved, folder)

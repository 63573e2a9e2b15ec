"""Loads the weights that a journal starts from or leads to, and saves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedspzo.errors import InputError, one_line
from fedspzo.journal.header import Header

from .config import is_hub_id
from .recipe import Recipe
from .saved_task import TASK_FILE, SavedTask
from .weight_files import INDEX, WEIGHTS

_BESIDE = (".json", ".txt", ".model", ".jinja")
"""Suffixes of the files that a copy of a model needs besides its weights."""


@dataclass(frozen=True)
class Weights:
    """A model's parameters.

    Attributes:
        named: all parameters by name. Tied ones share memory.
        save: writes the model to an empty folder.
    """

    named: Mapping[str, Tensor]
    save: Callable[[Path], None]


def load(name: str, header: Header) -> Weights:
    """Load weights as the run of a journal loaded them.

    The header of a `fedspzo run` has the model's recipe. For other journals, and if `name` ends in
    .safetensors, tensors are read by the names in the header. No model class is needed then.

    Args:
        name: a folder, a hub id, "demo", or a safetensors file.
        header: the journal's header.

    Raises:
        InputError: the weights cannot be loaded, or differ from the header in names, shapes or
            dtypes.
    """
    if header.model is None or is_tensors(name):
        found = _by_name(Path(name), header)
    else:
        found = _by_recipe(name, header.model)
    try:
        header.groups(found.named)
    except ValueError as error:
        raise InputError(f"'{name}': {error}; give the journal's model") from None
    return found


def is_tensors(name: str) -> bool:
    """Tell whether a base is a file of tensors, without config and tokenizer."""
    return name.endswith(".safetensors")


def _by_recipe(name: str, recipe: Mapping[str, Any]) -> Weights:
    from .pretrained import pretrained, save_pretrained

    if not (is_hub_id(name) or Path(name).is_dir()):
        raise InputError(f"'{name}' is no folder and no hub id; give a model's folder or hub id")
    try:
        known = Recipe.from_json(recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the journal's header does not say how its model is loaded ({one_line(error)}); give"
            " its weights as a .safetensors file"
        ) from None
    model, tokenizer = pretrained(name, _as_saved(name, known))

    def save(folder: Path) -> None:
        save_pretrained(model, tokenizer, folder)

    return Weights(dict(model.named_parameters()), save)


def _as_saved(name: str, recipe: Recipe) -> Recipe:
    """Return the recipe for a folder, which may be that of the trained model or of its base.

    The trained model's has the head that the run has made, in place of one to be replaced.
    """
    saved = recipe.of_saved
    if saved == recipe or not (Path(name) / TASK_FILE).is_file():
        return recipe
    return saved if SavedTask.read(Path(name)).recipe == saved else recipe


def _by_name(path: Path, header: Header) -> Weights:
    try:
        tensors = _read(path)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{path}': holds no weights that can be read ({one_line(error)}); give a .safetensors"
            f" file, or a folder with {WEIGHTS} or {INDEX}"
        ) from None
    for p in header.parameters:
        if p.name in tensors:
            tensors[p.name] = tensors[p.name].to(getattr(torch, p.dtype)).contiguous()
    named = {p.name: tensors[p.name] for p in header.parameters if p.name in tensors}
    for (
        p
    ) in header.parameters:  # a safetensors file holds tied weights once, under one of the names
        here = p.tied if p.tied in named else p.name
        if p.tied is not None and here in named:
            named[p.tied] = named[p.name] = named[here]

    def save(folder: Path) -> None:
        kept = {name: named.get(name, tensor) for name, tensor in tensors.items()}
        for p in header.parameters:
            if p.tied in kept:
                kept.pop(p.name, None)
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
        for file in path.iterdir() if path.is_dir() else ():
            if file.suffix in _BESIDE and file.name != INDEX:
                shutil.copyfile(file, folder / file.name)

    return Weights(named, save)


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a folder with one or several such files."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if not (path / INDEX).exists():
        return load_file(path / WEIGHTS)
    index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise ValueError(f"{INDEX} has no weight_map of file names")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (path / name).is_file():
            raise ValueError(f"{INDEX} names {name!r}, which is not in the folder")
        tensors |= load_file(path / name)
    return tensors

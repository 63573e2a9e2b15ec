"""Checks a model folder's weight files by their headers, before anything large is made of them."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Largest header of a safetensors file in bytes, as its format has it."""
MOST_LAYERS = 1000
"""Number of layers that a config may name for fewer tensors, as some models share layers."""


def check_weight_files(folder: Path, config: Any, itemsize: int) -> None:
    """Raise InputError if a folder's weights cannot be those of its config, or are too large.

    Args:
        folder: a folder written by save_pretrained.
        config: the model's config.
        itemsize: bytes of an element, as the weights are loaded.
    """
    tensors: dict[str, list[int]] = {}
    for path in _files(folder):
        tensors |= _shapes(path)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > max(MOST_LAYERS, len(tensors)):
        raise InputError(
            f"[model] name: config.json in '{folder}' has num_hidden_layers = {layers}, but there"
            f" are {len(tensors)} tensors; correct it"
        )
    needed = sum(map(math.prod, tensors.values())) * itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise InputError(
            f"[model] name: the weights in '{folder}' take {needed // 10**9:,} GB, this machine has"
            f" {memory // 10**9:,} GB of memory; name a smaller model, or a dtype of fewer bytes"
        )
    width = getattr(text, "hidden_size", None)
    if tensors and isinstance(width, int) and not any(width in shape for shape in tensors.values()):
        raise InputError(
            f"[model] name: config.json in '{folder}' has hidden_size = {width}, but no weight has"
            " a side of that length; correct it"
        )


def _files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: those of the index, or all."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
        names = document["weight_map"].values()
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{index}: has no weight_map of file names ({type(error).__name__}); restore it"
        ) from None
    for name in sorted(set(names)):
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{index}: names {name[:200]!r}, which is not in its folder")
    return [folder / name for name in sorted(set(names))]


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a safetensors file, from its header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            return {
                name: _shape(tensor["shape"])
                for name, tensor in header.items()
                if name != "__metadata__"
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: is no safetensors file ({reason}); restore it") from None
    except struct.error:
        raise InputError(f"{path}: is no safetensors file (too short); restore it") from None


def _shape(sizes: object) -> list[int]:
    if not isinstance(sizes, list) or not all(type(n) is int and 0 <= n < 2**63 for n in sizes):
        raise ValueError(f"a shape of {repr(sizes)[:60]}")
    return sizes

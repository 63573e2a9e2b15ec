"""Hashes the files beside a model's weights that decide what it computes, without torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from fedspzo.errors import InputError

from .sections import DEMO

_DECIDES = re.compile(
    r"config\.json|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt"
    r"|chat_template\.jinja|.*\.model|.*\.tiktoken"
)


def model_files(name: str) -> dict[str, str]:
    """Return the hash of a model's config and of each of its tokenizer's files, by file name.

    Args:
        name: a folder, a hub id, or "demo". A hub id's files are those in the cache; there are none
            before it is loaded for the first time.

    Raises:
        InputError: a file cannot be read.
    """
    folder = _folder(name)
    try:
        return {
            path.name: content_hash(path.read_bytes())
            for path in sorted(() if folder is None else folder.iterdir())
            if _DECIDES.fullmatch(path.name) and path.is_file()
        }
    except OSError as error:
        raise InputError(
            f"[model] name is {name!r}, whose files cannot be read ({error.strerror}); mend that"
        ) from None


def check_same_files(name: str, known: Mapping[str, str], what: str, remedy: str) -> None:
    """Raise InputError if a model's config or tokenizer is not as it was.

    Args:
        name: the model.
        known: the hashes that it had, as `model_files` returns them. Empty: nothing is known.
        what: when it had them, for the message.
        remedy: the remedy, for the message.
    """
    here = model_files(name)
    for file in sorted(known.keys() | here.keys()) if known else ():
        if known.get(file) != here.get(file):
            raise InputError(f"[model] name is {name!r}: {file} has changed since {what}; {remedy}")


def content_hash(content: bytes) -> str:
    """Return a file's hash, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _folder(name: str) -> Path | None:
    if name == DEMO:
        return Path(str(files("fedspzo.demo") / "model"))
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None

"""Compares a config with the unfinished run in a folder, before torch is imported."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError
from fedspzo.journal.reader import COMPACTED, ROUNDS, JournalError, JournalReader

from .config import Config, to_toml
from .run_folder import JOURNAL, RunFolder

_IGNORED = {("output", "dir")}


def identity(config: Config) -> dict[str, Any]:
    """Return the entries of a journal's header that identify a run: its config and data hashes."""
    data = {"train": config.data.train, "test": config.data.test}
    return {
        "config": to_toml(config),
        "data": {name: _hash(path) for name, path in data.items()},
    }


def check_same_run(folder: RunFolder, config: Config, *, resolved: bool = False) -> None:
    """Raise InputError unless `config` is that of the unfinished run in `folder`.

    Args:
        folder: the run's folder.
        config: the config that was asked for.
        resolved: `config` was read from the run's folder, where measured settings are filled in.
            They are not compared then. Default False.

    Raises:
        InputError: a setting or a file differs; the message names both values and the remedy. Or
            the journal is damaged, or not of `fedspzo run`.
    """
    path = folder.path / JOURNAL
    journal = JournalReader(path)
    kinds = {entry.kind for entry in journal}  # the iteration checks every checksum
    if ROUNDS in kinds:
        raise JournalError(f"{path}: {COMPACTED}")
    try:
        run = journal.header["run"]
        there, data = _sections(run["config"]), dict(run["data"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise JournalError(
            f"{path}: is not of 'fedspzo run'; name another folder with --output"
        ) from None
    remedy = f"the unfinished run in '{folder.path}'"
    here = _sections(to_toml(config))
    for section, key in _keys(there) + _keys(here):
        theirs, mine = (table.get(section, {}).get(key) for table in (there, here))
        filled_in = resolved and section == "optimizer"
        if theirs != mine and not filled_in and (section, key) not in _IGNORED:
            raise InputError(
                f"{config.path}: [{section}] {key} is {mine!r}, but {theirs!r} in {remedy}; give"
                " that, add --overwrite to start anew, or name another folder with --output"
            )
    for file, name in ((config.data.train, "train"), (config.data.test, "test")):
        if _hash(file) != data.get(name):
            raise InputError(
                f"{file}: has changed since {remedy} began; restore it, add"
                " --overwrite to start anew, or name another folder with --output"
            )


def _sections(toml: object) -> dict[str, dict[str, Any]]:
    if not isinstance(toml, str):
        raise TypeError("it is no text")
    document = tomllib.loads(toml)
    if not all(isinstance(section, dict) for section in document.values()):
        raise ValueError("a key is outside of the sections")
    return document


def _keys(document: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(section, key) for section, table in document.items() for key in table]


def _hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()

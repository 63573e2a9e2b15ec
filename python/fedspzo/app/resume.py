"""Compares a config with the unfinished run in a folder, before torch is imported."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from fedspzo.errors import InputError
from fedspzo.journal.reader import COMPACTED, ROUND, ROUNDS, JournalError, JournalReader

from .config import SECTIONS, Config, to_toml
from .data import Splits
from .model_files import check_same_files
from .run_folder import JOURNAL, RunFolder

_IGNORED = {("output", "dir"), ("output", "report_to")}
_EXTENDED = {("federation", "rounds"), ("output", "patience")}
"""Settings that change where a run is extended."""
_DEFAULTS = {
    (name, field.name): field.default
    for name, (section, _) in SECTIONS.items()
    for field in fields(section)
    if field.default is not MISSING
}
"""Values of the keys that a run of an older release did not know."""


def identity(config: Config, splits: Splits, files: Mapping[str, str]) -> dict[str, Any]:
    """Return the entries of a journal's header that identify a run.

    Args:
        config: the run's config.
        splits: its data, with the hashes of what was read.
        files: the hashes of the model's config and tokenizer (`model_files`).
    """
    return {
        "config": to_toml(config),
        "path": str(config.path.resolve()),
        "data": dict(splits.hashes),
        "files": dict(files),
    }


def check_same_run(
    folder: RunFolder, config: Config, splits: Splits, *, resolved: bool = False
) -> None:
    """Raise InputError unless `config` is that of the unfinished run in `folder`.

    Args:
        folder: the run's folder.
        config: the config that was asked for.
        splits: its data, with the hashes of what was read.
        resolved: `config` was read from the run's folder, where measured settings are filled in,
            and which may be extended. These are not compared then. Default False.

    Raises:
        InputError: a setting or a file differs; the message names both values and the remedy. Or
            the journal is damaged, not of `fedspzo run`, or has more rounds than are asked for.
    """
    path = folder.path / JOURNAL
    journal = JournalReader(path)
    kinds = Counter(entry.kind for entry in journal)  # the iteration checks every checksum
    if ROUNDS in kinds:
        raise JournalError(f"{path}: {COMPACTED}")
    try:
        run = journal.header["run"]
        there, data = _sections(run["config"]), dict(run["data"])
        files = dict(run.get("files", {}))  # journals of older releases do not have it
    except (KeyError, TypeError, ValueError, RecursionError):
        raise JournalError(
            f"{path}: is not of 'fedspzo run'; name another folder with --output"
        ) from None
    if kinds[ROUND] > config.federation.rounds:  # it was extended, and stopped
        raise JournalError(
            f"{path}: its run has {kinds[ROUND]} rounds already, [federation] rounds is"
            f" {config.federation.rounds}; 'fedspzo run --resume {folder.path}' goes on with it,"
            " --overwrite starts anew, and --output names another folder"
        )
    remedy = f"the unfinished run in '{folder.path}'"
    here = _sections(to_toml(config))
    for section, key in _keys(there) + _keys(here):
        theirs, mine = (
            table.get(section, {}).get(key, _DEFAULTS.get((section, key)))
            for table in (there, here)
        )
        filled_in = resolved and (section == "optimizer" or (section, key) in _EXTENDED)
        if theirs != mine and not filled_in and (section, key) not in _IGNORED:
            raise InputError(
                f"{config.path}: [{section}] {key} is {mine!r}, but {theirs!r} in {remedy}; give"
                " that, add --overwrite to start anew, or name another folder with --output"
            )
    again = "restore it, add --overwrite to start anew, or name another folder with --output"
    for name, known in splits.hashes.items():
        if known != data.get(name):
            raise InputError(
                f"{getattr(config.data, name)}: has changed since {remedy} began; {again}"
            )
    check_same_files(config.model.name, files, f"{remedy} began", again)


def rounds_done(folder: RunFolder) -> int:
    """Count the rounds in a run's journal. Raise JournalError if it is damaged."""
    return sum(entry.kind == ROUND for entry in JournalReader(folder.path / JOURNAL))


def begun_threads(folder: RunFolder) -> int | None:
    """Return the number of threads with which the run in a folder began. None: it is not known."""
    run = JournalReader(folder.path / JOURNAL).header.get("run")
    threads = run.get("threads") if isinstance(run, dict) else None
    return threads if type(threads) is int and 0 < threads < 2**16 else None


def _sections(toml: object) -> dict[str, dict[str, Any]]:
    if not isinstance(toml, str):
        raise TypeError("it is no text")
    document = tomllib.loads(toml)
    if not all(isinstance(section, dict) for section in document.values()):
        raise ValueError("a key is outside of the sections")
    return document


def _keys(document: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(section, key) for section, table in document.items() for key in table]

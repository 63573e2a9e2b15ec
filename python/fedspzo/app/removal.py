"""Checks that a run's folder may be written: nothing that the run needs, or another's, is lost."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError
from fedspzo.journal.reader import JournalReader

from .config import Config
from .run_folder import CONFIG, JOURNAL, METRICS, WRITTEN, RunFolder
from .sections import DEMO
from .sources import named


def check_removal(folder: RunFolder, config: Config) -> None:
    """Raise InputError if a run in `folder` would remove its own input, or another config's run.

    An earlier run is the config's own if it was begun from the same config file, or with the same
    model and data.

    Args:
        folder: the folder of the results. Nothing in it has been removed yet.
        config: the run's config.
    """
    inputs = {
        f"[data] {key}": source
        for key, source in config.data.sources.items()
        if isinstance(source, Path)
    }
    if config.model.name != DEMO and Path(config.model.name).is_dir():
        inputs["[model] name"] = Path(config.model.name)
    for name in WRITTEN:
        target = (folder.path / name).resolve()
        for key, path in inputs.items():
            if target == path.resolve() or target in path.resolve().parents:
                raise InputError(
                    f"{config.path}: {key} is '{path}', which is replaced where output is"
                    f" '{folder.path}'; copy it elsewhere, or name another folder with --output"
                )
    if folder.overwrite and any((folder.path / name).exists() for name in (JOURNAL, METRICS)):
        other = _other(folder.path, config)
        if other is not None:
            raise InputError(
                f"output '{folder.path}' holds {other}, which is not replaced; remove it yourself,"
                " or name another folder with --output"
            )


def _other(folder: Path, config: Config) -> str | None:
    """Return words for the run in a folder unless it is of this config."""
    run = _header(folder / JOURNAL)
    if run.get("path") == str(config.path.resolve()):
        return None
    there = _toml(run.get("config")) or _toml(_text(folder / CONFIG))
    if not there:
        return "a run of which no config is left"
    here = {
        ("model", "name"): config.model.name,
        ("data", "train"): named(config.data.train),
        ("data", "test"): named(config.data.test),
    }
    for (section, key), mine in here.items():
        theirs = there.get(section, {}).get(key)
        if theirs != mine:
            return f"the run of another config, whose [{section}] {key} is {theirs!r}"
    return None


def _header(path: Path) -> dict[str, Any]:
    try:
        run = JournalReader(path).header.get("run")
    except InputError:  # there is none, or it is damaged
        return {}
    return run if isinstance(run, dict) else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _toml(text: object) -> dict[str, dict[str, Any]]:
    """Return a document's sections. It is empty if the text is none."""
    try:
        document = tomllib.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return {name: table for name, table in document.items() if isinstance(table, dict)}

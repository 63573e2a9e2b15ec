"""What a value in [data] names: a file, a folder of several kinds, or a dataset of the hub.

This module imports nothing heavy, so that a mistake in a config is reported at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""The endings of data files, in any case. Each may be followed by .gz."""
ENDINGS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
"""The endings, as a message lists them."""

Kind = Literal["file", "clients", "labels", "dataset"]

_SAVED = ("dataset_dict.json", "state.json")
_HUB = re.compile(
    r"hub:(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(#(?P<split>[\w.\[\]:%+-]+))?"
)


class HubData(str):
    """A dataset of the hub, as [data] names it: "hub:OWNER/NAME:CONFIG#SPLIT".

    CONFIG may be left out, with its colon. Without SPLIT it is that of the key: train, test or
    validation.
    """

    @classmethod
    def parse(cls, value: object) -> HubData:
        """Return the dataset that a value of a config names. Raise TypeError if it names none."""
        if not isinstance(value, str) or not _HUB.fullmatch(value):
            raise TypeError('"hub:OWNER/NAME" or "hub:OWNER/NAME:CONFIG#SPLIT"')
        return cls(value)

    def parts(self, key: str) -> tuple[str, str | None, str]:
        """Return the dataset's id, its config, and the split for a key of [data]."""
        found = _HUB.fullmatch(self)
        assert found is not None
        return found["id"], found["config"], found["split"] or key


Source = Path | HubData
"""What [data] names."""


def kind_of(source: Source) -> Kind:
    """Return what a source is.

    Returns:
        "dataset": a dataset of the hub, or a folder that `save_to_disk` of `datasets` wrote.
        "clients": a folder with a data file for each client. "labels": a folder with a folder of
        texts for each label. "file": none of these.
    """
    if isinstance(source, HubData):
        return "dataset"
    try:
        if not source.is_dir():
            return "file"
        if any((source / name).is_file() for name in _SAVED):
            return "dataset"
        folders = any(one.is_dir() for one in source.iterdir())
        return "labels" if folders and not data_files(source) else "clients"
    except OSError:  # what cannot be listed
        return "file"


def format_of(path: Path) -> str:
    """Return a file's ending in lower case, without a .gz after it."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def stem_of(path: Path) -> str:
    """Return a data file's name without its endings."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    return Path(name).stem


def data_files(folder: Path) -> list[Path]:
    """Return the data files in a folder, by name."""
    return sorted(one for one in folder.iterdir() if format_of(one) in SUFFIXES)


def named(source: Source | None) -> str | None:
    """Return the text by which a config that a run leaves names a source."""
    return str(source.resolve()) if isinstance(source, Path) else source

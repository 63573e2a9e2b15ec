"""Opens what [data] names, as tables of rows. Each file is read once: what is read is hashed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedspzo.errors import InputError

from .arrow import Dataset
from .model_files import content_hash
from .rows import Row, Table, content, table, text_of
from .sources import ENDINGS, HubData, Source, data_files, kind_of, stem_of

TEXTS = ".txt"
"""The ending of a file whose whole content is a text."""


@dataclass(frozen=True)
class Input:
    """What a key of [data] names.

    Attributes:
        tables: its tables. Each has the name of the client that owns it, or None.
        contents: the content of each file, by its path in the folder, or its name. It is empty for
            a dataset.
        dataset: the dataset, or None.
    """

    tables: list[tuple[Table, str | None]]
    contents: Mapping[str, bytes]
    dataset: Dataset | None = None

    @property
    def hash(self) -> str:
        """The hash of what was read: of a file's content, or of a folder's names and contents."""
        if self.dataset is not None:
            return self.dataset.hash
        if len(self.contents) == 1:
            return content_hash(next(iter(self.contents.values())))
        parts = (f"{name}\0{content_hash(data)}\0" for name, data in self.contents.items())
        return content_hash("".join(parts).encode("utf-8", "surrogateescape"))


def open_input(
    source: Source, key: str, wanted: Collection[str], encoding: str, text: str, label: str
) -> Input:
    """Read the files that a key of [data] names.

    Args:
        source: what the key names.
        key: the key.
        wanted: the fields that are needed.
        encoding: encoding of text files.
        text: name of the field that a file in a folder of texts has as its text.
        label: name of the field that has the folder's name.

    Raises:
        InputError: it cannot be read; one line names file and remedy.
    """
    kind = kind_of(source)
    if kind == "dataset":
        dataset = Dataset(source, key)
        rows = Table(source, "row", dataset.rows(wanted))
        return Input([(rows, None)], {}, dataset)
    assert not isinstance(source, HubData)
    if kind == "labels":
        contents = {str(path.relative_to(source)): content(path) for path in _texts(source)}
        rows = Table(source, "file", _labelled(source, contents, encoding, text, label))
        return Input([(rows, None)], contents)
    paths = _clients(source) if kind == "clients" else [source]
    contents = {path.name: content(path) for path in paths}
    return Input(
        [
            (
                table(path, contents[path.name], wanted, encoding),
                stem_of(path) if kind == "clients" else None,
            )
            for path in paths
        ],
        contents,
    )


def _clients(folder: Path) -> list[Path]:
    """Return each client's file in a folder."""
    paths = data_files(folder)
    if not paths:
        raise InputError(
            f"{folder}: holds no {ENDINGS} file, one a client, and no folders of {TEXTS} files, one"
            " a label; give one of these"
        )
    names = [stem_of(path) for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{folder}: has two files of client {name!r}; give one a client")
    return paths


def _texts(folder: Path) -> list[Path]:
    """Return the texts in the folders of a folder."""
    paths = sorted(
        path
        for label in folder.iterdir()
        if label.is_dir()
        for path in label.iterdir()
        if path.suffix.lower() == TEXTS
    )
    if not paths:
        raise InputError(
            f"{folder}: its folders hold no {TEXTS} files; give a folder of such texts for each"
            " label"
        )
    return paths


def _labelled(
    folder: Path, contents: Mapping[str, bytes], encoding: str, text: str, label: str
) -> Iterator[Row]:
    for name, read in contents.items():
        path = folder / name
        yield name, {text: text_of(path, read, encoding).strip(), label: path.parent.name}

"""The section [data] of a run's configuration: a frozen dataclass that checks its values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .sources import ENDINGS, SUFFIXES, HubData, Source, format_of, kind_of

Encoding = Literal["utf-8", "utf-16", "latin-1", "windows-1252"]
"""An encoding of text files."""
ENCODINGS: tuple[str, ...] = get_args(Encoding)
OnBadRow = Literal["refuse", "skip"]
"""What is done with a row without text or label."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The section [data].

    Attributes:
        train: the training examples: a JSON, CSV or Parquet file, a folder with such a file for
            each client, a folder with a folder of texts for each label, or a dataset (`sources`).
        test: the held-out examples; anything but a folder with files of clients. Default None:
            `test_share` is given.
        test_share: share of the texts of `train` that are held out in place of `test`, of each
            label, by the run's seed. Default None: `test` is given.
        validation: examples by which the best round is chosen, as `test` has them; or the share of
            the training examples that are set aside for this, of each label, by the run's seed.
            Default None: the last round counts.
        encoding: encoding of text files. UTF-8 (default) may have a byte order mark.
        text: name of the field with the text. Default "text".
        label: name of the field with the label. Default "label".
        prompt: name of the field with the prompt of a completion. Default "prompt".
        answer: name of the field with its answer. Default "answer".
        client: name of the field with the name of the client that has a training example. Default
            None: the examples are dealt, unless `train` is a folder.
        on_bad_row: "refuse" (default): a row without text or label is an error. "skip": it is left
            out, and counted.
        max_length: tokens to which an example is cut, at least 2. Default 128.
        max_repeated: largest share of the test texts that may also be training texts. Default 0.1.

    Raises:
        ValueError: a file is missing, has another suffix, or serves twice; `max_length` is below 2;
            or `max_repeated`, `test_share` or `validation` is no share.
    """

    train: Path | HubData
    test: Path | HubData | None = None
    test_share: float | None = None
    validation: Path | HubData | float | None = None
    encoding: Encoding = "utf-8"
    text: str = "text"
    label: str = "label"
    prompt: str = "prompt"
    answer: str = "answer"
    client: str | None = None
    on_bad_row: OnBadRow = "refuse"
    max_length: int = 128
    max_repeated: float = 0.1

    def __post_init__(self) -> None:
        if self.client is not None and kind_of(self.train) == "clients":
            raise ValueError(
                f"client is {self.client!r}, but train is a folder with a file for each client;"
                " remove client"
            )
        if self.test is None and self.test_share is None:
            raise ValueError(
                "key 'test' is missing; add it, or test_share, the share of train to hold out"
            )
        if self.test is not None and self.test_share is not None:
            raise ValueError(
                f"test_share is {self.test_share}, but test is '{self.test}'; remove one of them"
            )
        used: dict[tuple[str, ...], str] = {}
        for name, source in self.sources.items():
            self._check_source(name, source)
            split = source.parts(name)[2] if isinstance(source, HubData) else name
            mine = (split,) if kind_of(source) == "dataset" else ()
            path = source.resolve() if isinstance(source, Path) else source.split("#")[0]
            other = used.setdefault((str(path), *mine), name)
            if other != name:
                raise ValueError(
                    f"{name} is '{source}', the same file as {other}; give examples never trained"
                    " on"
                )
        for name in ("validation", "test_share"):
            share = getattr(self, name)
            if isinstance(share, float) and not 0 < share < 1:
                file = "a file, or " if name == "validation" else ""
                raise ValueError(f"{name} is {share}; give {file}a share between 0 and 1")
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; give at least 2 tokens")
        if not 0 <= self.max_repeated <= 1:
            raise ValueError(f"max_repeated is {self.max_repeated}; give a share from 0 to 1")

    @staticmethod
    def _check_source(name: str, source: Source) -> None:
        kind = kind_of(source)
        if kind == "clients" and name != "train":
            raise ValueError(
                f"{name} is '{source}', a folder with neither texts by label nor a saved dataset;"
                f" give one with these, or a {ENDINGS} file"
            )
        if kind != "file":
            return
        assert isinstance(source, Path)
        if format_of(source) not in SUFFIXES:
            raise ValueError(
                f"{name} is '{source}'; give a {ENDINGS} file, a folder, or 'hub:OWNER/NAME'"
            )
        if not source.is_file():
            raise ValueError(f"{name} is '{source}', which is no file; correct the path")

    @property
    def owned(self) -> bool:
        """Each training example is a certain client's, so that they are not dealt."""
        return self.client is not None or kind_of(self.train) == "clients"

    @property
    def sources(self) -> dict[str, Source]:
        """What is read, by its key."""
        every = {"train": self.train, "test": self.test, "validation": self.validation}
        return {key: value for key, value in every.items() if isinstance(value, Path | HubData)}

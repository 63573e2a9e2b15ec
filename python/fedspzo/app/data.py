"""Reads examples from JSONL and CSV files, and checks each row.

This module does not import torch, so that a mistake in a file is reported before the model loads.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedspzo.errors import InputError

from . import examples
from .config import Config
from .examples import Example, Reading, listing
from .model_files import content_hash
from .rows import content
from .sections import SUFFIXES, DataConfig, TaskConfig


@dataclass(frozen=True)
class Splits:
    """The examples of a run.

    Attributes:
        train: the training examples.
        test: the held-out examples.
        labels: the labels in the order of their class numbers. It is empty for language modelling.
        validation: the examples by which the best round is chosen. Default: none.
        hashes: the hash of each file that was read, by its key in [data].
        skipped: number of rows without text or label that were left out, by the file's key.
    """

    train: list[Example]
    test: list[Example]
    labels: tuple[str, ...]
    validation: list[Example] = field(default_factory=list)
    hashes: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def owners(self) -> tuple[str, ...]:
        """The names of the clients that have the training examples; empty if these are dealt."""
        return tuple(sorted({one.client for one in self.train if one.client is not None}))

    @property
    def repeated(self) -> int:
        """Number of test examples that have text and answer of a training or validation example."""
        seen = {(one.text, one.answer) for one in (*self.train, *self.validation)}
        return sum((one.text, one.answer) in seen for one in self.test)


def read_splits(
    data: DataConfig,
    task: TaskConfig,
    seed: int = 0,
    *,
    only: Collection[str] | None = None,
    known: tuple[str, ...] = (),
) -> Splits:
    """Read the files, and check them against the task.

    The labels are those of the verbalizers, in their order. With a classification head they are
    those of the training file, sorted.

    Args:
        data: the section [data].
        task: the section [task].
        seed: seed that chooses the examples of a validation share. Default 0.
        only: the keys of the files to read, where a participant has not all of them. Default None:
            all.
        known: the labels, where `only` is given.

    Raises:
        InputError: a file has a mistake; one line names file, line, value and remedy.
    """
    wanted = data.files if only is None else only
    contents = {key: _contents(path) for key, path in data.files.items() if key in wanted}
    skipped: dict[str, int] = {}

    def take(key: str, labels: Sequence[str] = (), remedy: str = "") -> list[Example]:
        answered = task.type == "completion"
        reading = Reading(
            text=data.prompt if answered else data.text,
            label=data.label if task.type in ("prompt", "classification") else None,
            answer=data.answer if answered else None,
            client=data.client if key == "train" else None,
            labels=labels or None,
            remedy=remedy,
            skip=data.on_bad_row == "skip",
        )
        found: list[Example] = []
        for path, read in contents[key].items():
            owner = path.stem if path != data.files[key] else None
            part = examples.read(path, read, reading, owner)
            found += part.examples
            skipped[key] = skipped.get(key, 0) + part.skipped
        return found

    labels: tuple[str, ...] = ()
    remedy = ""
    if only is not None:
        labels, remedy = known, "it is not among the labels of the federation: correct it"
        train = take("train", labels, remedy) if "train" in contents else []
    elif task.type == "prompt":
        labels, remedy = tuple(task.verbalizers), "give it a word in [task.verbalizers]"
        train = take("train", labels, remedy)
        _check_all_used(data.train, train, labels)
    else:
        train = take("train")
    if task.type == "classification" and only is None:
        labels = tuple(sorted({one.label for one in train if one.label is not None}))
        if len(labels) < 2:
            raise InputError(
                f"{data.train}: every row has the label {labels[0]!r}; give rows of two labels or"
                " more"
            )
        remedy = f"it is not among the labels of '{data.train}': correct it or add training rows"
    others = {key: take(key, labels, remedy) for key in contents if key != "train"}
    validation = others.get("validation", [])
    if isinstance(data.validation, float) and only is None:
        train, validation = _set_aside(train, data, seed)
    hashes = {key: _hash(read) for key, read in contents.items()}
    return Splits(train, others.get("test", []), labels, validation, hashes, skipped)


def _contents(path: Path) -> dict[Path, bytes]:
    """Return the content of a file, or of each data file in a folder, by path."""
    if not path.is_dir():
        return {path: content(path)}
    paths = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{path}: holds no {' or '.join(SUFFIXES)} file; give one a client")
    names = [one.stem for one in paths]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: has two files of client {name!r}; give one a client")
    return {one: content(one) for one in paths}


def _hash(contents: Mapping[Path, bytes]) -> str:
    """Return the hash of a file's content, or of a folder's names and contents."""
    if len(contents) == 1:
        return content_hash(next(iter(contents.values())))
    parts = (f"{path.name}\0{content_hash(read)}\0" for path, read in contents.items())
    return content_hash("".join(parts).encode("utf-8", "surrogateescape"))


def _set_aside(
    train: list[Example], data: DataConfig, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split training examples into those to train on and those to choose the best round by.

    Of each label the same share is set aside, rounded, but at least one example stays.
    """
    share = float(data.validation)  # type: ignore[arg-type]
    by_label: dict[str | None, list[int]] = {}
    for number, example in enumerate(train):
        by_label.setdefault(example.label, []).append(number)
    chosen: set[int] = set()
    draw = random.Random(seed)
    for label in sorted(by_label, key=str):
        numbers = by_label[label]
        count = min(round(share * len(numbers)), len(numbers) - 1)
        chosen.update(draw.sample(numbers, count))
    if not chosen:
        raise InputError(
            f"{data.train}: [data] validation is {share:g}, a share of its {len(train)} examples"
            " that leaves none to choose by; give a larger share, or a file"
        )
    kept = [example for number, example in enumerate(train) if number not in chosen]
    return kept, [example for number, example in enumerate(train) if number in chosen]


def check_clients(config: Config, splits: Splits) -> None:
    """Raise InputError unless each client has a training example."""
    clients, owners = config.federation.clients, splits.owners
    if owners and len(owners) != clients:
        raise InputError(
            f"{config.path}: [federation] clients is {clients}, but '{config.data.train}' has"
            f" examples of {len(owners)} clients ({listing(owners)}); set clients = {len(owners)}"
        )
    if clients > len(splits.train):
        raise InputError(
            f"{config.path}: [federation] clients is {clients}, but '{config.data.train}' has "
            f"{len(splits.train)} examples; give each client one at least"
        )


def check_repeated(data: DataConfig, splits: Splits) -> None:
    """Raise InputError if too many test texts are also in the training file."""
    if splits.repeated > data.max_repeated * len(splits.test):
        raise InputError(
            f"{data.test}: {splits.repeated} of its {len(splits.test)} texts are also in"
            f" '{data.train}', so it would measure what was learned by heart; remove them from one"
            f" of the files, or raise [data] max_repeated, which is {data.max_repeated:g}"
        )


def _check_all_used(path: Path, examples: list[Example], labels: tuple[str, ...]) -> None:
    seen = {example.label for example in examples}
    for label in labels:
        if label not in seen:
            raise InputError(
                f"{path}: no row has the label {label!r} of [task.verbalizers]; "
                "add such rows or remove the verbalizer"
            )


def read(
    path: Path,
    text_field: str,
    label_field: str | None,
    labels: Collection[str] | None = None,
    label_remedy: str = "",
) -> list[Example]:
    """Read the examples of a .jsonl or .csv file.

    Args:
        path: the file, in UTF-8. A byte order mark is allowed; blank lines are ignored.
        text_field: name of the field or column with the text.
        label_field: name of the field or column with the label, which may be a text, a number or a
            boolean. None: there are no labels.
        labels: the labels that may occur. Default None: any label.
        label_remedy: the remedy for another label, for the message.

    Raises:
        InputError: the file has a mistake; one line names file, line, value and remedy.
    """
    reading = Reading(text=text_field, label=label_field, labels=labels, remedy=label_remedy)
    return examples.read(path, content(path), reading).examples

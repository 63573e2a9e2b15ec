"""Reads the examples that [data] names, and checks each row.

This module does not import torch, so that a mistake in a file is reported before the model loads.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedspzo.errors import InputError

from . import examples
from .config import Config
from .data_section import DataConfig
from .examples import Example, Reading, listing
from .inputs import open_input
from .rows import content, table
from .sections import TaskConfig
from .sources import Source
from .waiting import Count

T = TypeVar("T", int, str)


@dataclass(frozen=True)
class Splits:
    """The examples of a run.

    Attributes:
        train: the training examples.
        test: the held-out examples.
        labels: the labels in the order of their class numbers. It is empty for language modelling.
        validation: the examples by which the best round is chosen. Default: none.
        hashes: the hash of what was read, by its key in [data].
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
    def size(self) -> int:
        """Number of examples."""
        return len(self.train) + len(self.test) + len(self.validation)

    @property
    def repeated(self) -> int:
        """Number of test examples that have text and answer of a training or validation example."""
        seen = {(one.text, one.answer) for one in (*self.train, *self.validation)}
        return sum((one.text, one.answer) in seen for one in self.test)


def read_splits(
    data: DataConfig,
    task: TaskConfig,
    seed: int = 0,
    count: Count | None = None,
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
        seed: seed that chooses the examples of a test and a validation share. Default 0.
        count: counts the rows. Default None: nobody is told how far it is.
        only: the keys of what is read, where a participant has not all of it. Default None: all.
        known: the labels, where `only` is given.

    Raises:
        InputError: a file has a mistake; one line names file, line, value and remedy.
    """
    wanted = [key for key in data.sources if only is None or key in only]
    skipped: dict[str, int] = {}
    hashes: dict[str, str] = {}

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
        opened = open_input(
            data.sources[key], key, reading.fields, data.encoding, data.text, data.label
        )
        for rows, owner in opened.tables:
            part = examples.read(rows, reading, owner, count)
            found += part.examples
            skipped[key] = skipped.get(key, 0) + part.skipped
        hashes[key] = opened.hash
        return found

    labels: tuple[str, ...] = ()
    remedy = ""
    if only is not None:
        labels, remedy = known, "it is not among the labels of the federation: correct it"
        train = take("train", labels, remedy) if "train" in wanted else []
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
    others = {key: take(key, labels, remedy) for key in wanted if key != "train"}
    test, validation = others.get("test", []), others.get("validation", [])
    if data.test_share is not None and only is None:
        train, test = _hold_out(train, data, seed)
    if isinstance(data.validation, float) and only is None:
        train, validation = _set_aside(train, data, seed)
    return Splits(train, test, labels, validation, hashes, skipped)


def _set_aside(
    train: list[Example], data: DataConfig, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split training examples into those to train on and those to choose the best round by."""
    share = float(data.validation)  # type: ignore[arg-type]
    labels = [example.label for example in train]
    chosen = _drawn(zip(labels, range(len(train)), strict=True), share, random.Random(seed))
    if not chosen:
        raise InputError(
            f"{data.train}: [data] validation is {share:g}, a share of its {len(train)} examples"
            " that leaves none to choose by; give a larger share, or a file"
        )
    kept = [example for number, example in enumerate(train) if number not in chosen]
    _check_owners(train, kept, data, f"validation is {share:g}", "a file")
    return kept, [example for number, example in enumerate(train) if number in chosen]


def _hold_out(
    train: list[Example], data: DataConfig, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split examples into those to train on and those to test by, which share no text."""
    share = float(data.test_share)  # type: ignore[arg-type]
    labels: dict[str, str | None] = {}
    for example in train:
        labels.setdefault(example.text, example.label)  # a text may be there with two labels
    every = ((label, text) for text, label in labels.items())
    chosen = _drawn(every, share, random.Random(f"test {seed}"))
    kept = [example for example in train if example.text not in chosen]
    if not chosen:
        raise InputError(
            f"{data.train}: [data] test_share is {share:g}, a share of its {len(labels)} texts that"
            " leaves none to test by; give a larger share, or a file as [data] test"
        )
    _check_owners(train, kept, data, f"test_share is {share:g}", "a file as [data] test")
    return kept, [example for example in train if example.text in chosen]


def _check_owners(
    train: list[Example], kept: list[Example], data: DataConfig, taken: str, remedy: str
) -> None:
    """Raise InputError if a client has examples in `train`, but none in `kept`.

    Args:
        train: the examples before a share of them was taken.
        kept: those that are left.
        data: the section [data].
        taken: the share's key in [data] and its value, for the message.
        remedy: what may be given in place of a smaller share.
    """
    lost = {example.client for example in train} - {example.client for example in kept}
    if lost:
        raise InputError(
            f"{data.train}: [data] {taken}, which leaves client {min(map(str, lost))!r} no"
            f" examples; give a smaller share, or {remedy}"
        )


def _drawn(labelled: Iterable[tuple[str | None, T]], share: float, draw: random.Random) -> set[T]:
    """Draw a share of the things of each label, rounded, but never all of them."""
    by_label: dict[str | None, list[T]] = {}
    for label, thing in labelled:
        by_label.setdefault(label, []).append(thing)
    chosen: set[T] = set()
    for label in sorted(by_label, key=str):
        things = by_label[label]
        count = min(round(share * len(things)), len(things) - 1)
        chosen.update(draw.sample(things, count))
    return chosen


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


def _check_all_used(source: Source, examples: list[Example], labels: tuple[str, ...]) -> None:
    seen = {example.label for example in examples}
    for label in labels:
        if label not in seen:
            raise InputError(
                f"{source}: no row has the label {label!r} of [task.verbalizers]; "
                "add such rows or remove the verbalizer"
            )


def read(
    path: Path,
    text_field: str,
    label_field: str | None,
    labels: Collection[str] | None = None,
    label_remedy: str = "",
) -> list[Example]:
    """Read the examples of a data file.

    Args:
        path: the file. A text file is in UTF-8. Blank lines are ignored.
        text_field: name of the field or column with the text.
        label_field: name of the field or column with the label, which may be a text, a number or a
            boolean. None: there are no labels.
        labels: the labels that may occur. Default None: any label.
        label_remedy: the remedy for another label, for the message.

    Raises:
        InputError: the file has a mistake; one line names file, line, value and remedy.
    """
    reading = Reading(text=text_field, label=label_field, labels=labels, remedy=label_remedy)
    rows = table(path, content(path), reading.fields)
    return examples.read(rows, reading).examples

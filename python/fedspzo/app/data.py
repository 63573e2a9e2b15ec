"""Reads examples from JSONL and CSV files, and checks each row.

This module does not import torch, so that a mistake in a file is reported before the model loads.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError

from .config import DataConfig, TaskConfig
from .model_files import content_hash

SHOWN = 12
"""Number of labels that a message lists."""


@dataclass(frozen=True)
class Example:
    """One row of a file.

    Attributes:
        text: the text, not blank.
        label: the label. Default None: language modelling has none.
    """

    text: str
    label: str | None = None


@dataclass(frozen=True)
class Splits:
    """The examples of a run.

    Attributes:
        train: the training examples.
        test: the held-out examples.
        labels: the labels in the order of their class numbers. It is empty for language modelling.
        validation: the examples by which the best round is chosen. Default: none.
        hashes: the hash of each file that was read, by its key in [data].
    """

    train: list[Example]
    test: list[Example]
    labels: tuple[str, ...]
    validation: list[Example] = field(default_factory=list)
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """Number of test examples whose text is also that of a training or validation example."""
        seen = {example.text for example in (*self.train, *self.validation)}
        return sum(example.text in seen for example in self.test)


def read_splits(data: DataConfig, task: TaskConfig, seed: int = 0) -> Splits:
    """Read the files, and check them against the task.

    The labels are those of the verbalizers, in their order. With a classification head they are
    those of the training file, sorted.

    Args:
        data: the section [data].
        task: the section [task].
        seed: seed that chooses the examples of a validation share. Default 0.

    Raises:
        InputError: a file has a mistake; one line names file, line, value and remedy.
    """
    paths = data.files
    contents = {key: _content(path) for key, path in paths.items()}
    label_field = None if task.type == "lm" else data.label

    def examples(key: str, labels: Sequence[str] | None = None, remedy: str = "") -> list[Example]:
        return _examples(paths[key], contents[key], data.text, label_field, labels, remedy)

    labels: tuple[str, ...] = ()
    remedy = ""
    if task.type == "prompt":
        labels, remedy = tuple(task.verbalizers), "give it a word in [task.verbalizers]"
        train = examples("train", labels, remedy)
        _check_all_used(data.train, train, labels)
    else:
        train = examples("train")
    if task.type == "classification":
        labels = tuple(sorted({example.label for example in train if example.label is not None}))
        if len(labels) < 2:
            raise InputError(
                f"{data.train}: every row has the label {labels[0]!r}; give rows of two labels or"
                " more"
            )
        known = ", ".join(map(repr, labels[:SHOWN])) + (", ..." if len(labels) > SHOWN else "")
        remedy = (
            f"it is not among the labels of '{data.train}' ({known}): correct it or add training"
            " rows"
        )
    others = {key: examples(key, labels or None, remedy) for key in paths if key != "train"}
    validation = others.get("validation", [])
    if isinstance(data.validation, float):
        train, validation = _set_aside(train, data, seed)
    hashes = {key: content_hash(content) for key, content in contents.items()}
    return Splits(train, others["test"], labels, validation, hashes)


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
    """Read the rows of a .jsonl or .csv file.

    Args:
        path: the file, in UTF-8. A byte order mark is allowed; blank lines are ignored.
        text_field: name of the field or column with the text.
        label_field: name of the field or column with the label, which may be a text, a whole
            number or a boolean. None: there are no labels.
        labels: the labels that may occur. Default None: any label.
        label_remedy: the remedy for another label, for the message.

    Raises:
        InputError: the file has a mistake; one line names file, line, value and remedy.
    """
    return _examples(path, _content(path), text_field, label_field, labels, label_remedy)


def _examples(
    path: Path,
    content: bytes,
    text_field: str,
    label_field: str | None,
    labels: Collection[str] | None,
    label_remedy: str,
) -> list[Example]:
    """Return the examples in a file's content. The arguments are those of `read`."""
    text = _text(path, content)
    rows = _csv_rows(path, text) if path.suffix == ".csv" else _jsonl_rows(path, text)
    examples = []
    for line, row in rows:
        where = f"{path}, line {line}"
        text = _field(where, row, text_field, "text")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: {text_field!r} is {text!r}; give a non-empty text")
        _check_characters(where, text_field, text)
        label = None
        if label_field is not None:
            label = _label(where, label_field, _field(where, row, label_field, "label"))
            _check_characters(where, label_field, label)
            if labels is not None and label not in labels:
                raise InputError(f"{where}: {label_field!r} is {label!r}; {label_remedy}")
        examples.append(Example(text, label))
    if not examples:
        raise InputError(f"{path}: holds no examples; add at least one row")
    return examples


def _field(where: str, row: dict[str, Any], name: str, key: str) -> Any:
    if name not in row:
        has = ", ".join(repr(k) for k in row) or "none"
        raise InputError(
            f"{where}: field {name!r} is missing (fields: {has}); "
            f"add it or name another one as [data] {key}"
        )
    return row[name]


def _label(where: str, name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value).strip()
    raise InputError(f"{where}: {name!r} is {value!r}; give a label as text or whole number")


def _check_characters(where: str, name: str, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: {name!r} holds half a surrogate pair; remove it")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from None


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # splitlines would also split at U+2028, which may stand inside a JSON text
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (
            ValueError,
            RecursionError,
        ) as error:  # ValueError: also for a number with thousands of digits
            raise InputError(
                f"{path}, line {number}: not valid JSON ({error}); "
                'write one object a line, {"text": "...", "label": "..."}'
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}: {line.strip()[:60]!r} is no JSON object; "
                'write {"text": "...", "label": "..."}'
            )
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        start = 1
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                pass
            elif header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise InputError(
                        f"{path}, line {start}: a column occurs twice ({', '.join(header)}); "
                        "give each its own name"
                    )
            elif len(cells) != len(header):
                raise InputError(
                    f"{path}, line {start}: {len(cells)} cells for {len(header)} columns "
                    f"({', '.join(header)}); quote texts that hold commas"
                )
            else:
                yield start, dict(zip(header, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not valid CSV ({error}); "
            "quote texts with double quotes and double those inside"
        ) from None

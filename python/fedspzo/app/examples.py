"""Makes examples of rows, and checks each row."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from fedspzo.errors import InputError

from .naming import IN_CONFIG, Naming
from .rows import Table, shown
from .waiting import Count

MOST_LINES = 12
"""Number of lines that a message lists."""


@dataclass(frozen=True)
class Example:
    """One row of a file.

    Attributes:
        text: the text, not blank.
        label: the label. Default None: language modelling has none.
        client: the name of the client that has the row. Default None: the rows are dealt.
        answer: the text that answers `text`, not blank. Default None: a completion alone has one.
    """

    text: str
    label: str | None = None
    client: str | None = None
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The way in which rows become examples.

    Attributes:
        text: name of the field with the text.
        label: name of the field with the label. None: there are no labels.
        client: name of the field with the client's name. Default None: there is none.
        labels: the labels that may occur. Default None: any label.
        remedy: the remedy for another label, for the message.
        skip: rows without text or label are skipped. Default False: they are refused.
        answer: name of the field with the answer to the text. Default None: there are no answers.
        naming: how messages name the settings. Default: as in a config.
    """

    text: str
    label: str | None
    client: str | None = None
    labels: Collection[str] | None = None
    remedy: str = ""
    skip: bool = False
    answer: str | None = None
    naming: Naming = IN_CONFIG

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that are read."""
        every = (self.text, self.label, self.answer, self.client)
        return tuple(dict.fromkeys(name for name in every if name is not None))


@dataclass
class Found:
    """The examples of a file.

    Attributes:
        examples: the examples.
        skipped: number of rows that were skipped.
    """

    examples: list[Example] = field(default_factory=list)
    skipped: int = 0


def read(
    table: Table, reading: Reading, client: str | None = None, count: Count | None = None
) -> Found:
    """Make examples of a table's rows.

    Args:
        table: the table.
        reading: the way to read it.
        client: the client that has all of its rows. Default None: `reading` says it.
        count: counts the rows, to tell how far it is. Default None: nobody is told.

    Raises:
        InputError: the table has a mistake; one line names file, line, value and remedy.
    """
    found = Found()
    count = Count() if count is None else count
    empty: list[tuple[int | str, str]] = []
    lacking: InputError | None = None
    for place, row in table.rows:
        where = table.where(place)
        try:
            fault = _empty(where, row, reading)
        except InputError as error:
            if not reading.skip:
                raise
            lacking, fault = lacking or error, str(error)
        if fault is not None:
            empty.append((place, fault))
        else:
            found.examples.append(_example(where, row, reading, client))
        count.done += 1
    if empty and not reading.skip:
        raise _refused(table, empty, reading)
    found.skipped = len(empty)
    if not found.examples:
        # a field that no row has is no matter of bad rows: its name is wrong
        if lacking is not None:
            raise lacking
        raise InputError(f"{table.source}: holds no examples; add at least one row")
    return found


def _empty(where: str, row: dict[str, Any], reading: Reading) -> str | None:
    """Return words for the text, label or answer that a row lacks. Return None if it has all."""
    first = "text" if reading.answer is None else "prompt"
    for name, key in (
        (reading.text, first),
        (reading.label, "label"),
        (reading.answer, "answer"),
    ):
        if name is None:
            continue
        value = _field(where, row, name, key, reading.naming)
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"{name!r} is {shown(value)}"
    return None


def _refused(table: Table, empty: list[tuple[int | str, str]], reading: Reading) -> InputError:
    places = ", ".join(str(place) for place, _ in empty[:MOST_LINES])
    if len(empty) > MOST_LINES:
        places += f" and {len(empty) - MOST_LINES} more"
    where = f"{table.unit} {places}" if len(empty) == 1 else f"{table.unit}s {places}"
    first = empty[0][1] if len(empty) == 1 else f"{empty[0][1]} in the first of them"
    whole = "a non-empty text" if reading.label is None else "a non-empty text and a label"
    if reading.answer is not None:
        whole = "a prompt and an answer"
    remedy = "remove such rows"
    if reading.naming.can_set("on_bad_row"):
        remedy = f"leave such rows out by {reading.naming.setting('on_bad_row', 'skip')}"
    return InputError(f"{table.source}, {where}: {first}; give {whole}, or {remedy}")


def _example(where: str, row: dict[str, Any], reading: Reading, client: str | None) -> Example:
    text = row[reading.text]
    if isinstance(text, dict | list):
        raise InputError(
            f"{where}: {reading.text!r} holds {len(text)} values, a whole column; write one object"
            ' a line, {"text": "...", "label": "..."}'
        )
    if not isinstance(text, str):
        raise InputError(f"{where}: {reading.text!r} is {shown(text)}; give a non-empty text")
    _check_characters(where, reading.text, text)
    label = None
    if reading.label is not None:
        label = _label(where, row[reading.label], reading)
    if reading.client is not None:
        name = _field(where, row, reading.client, "client", reading.naming)
        if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
            raise InputError(f"{where}: {reading.client!r} is {shown(name)}; give a client's name")
        client = str(name).strip()
        _check_characters(where, reading.client, client)
    answer = None if reading.answer is None else _answer(where, row[reading.answer], reading.answer)
    return Example(text, label, client, answer)


def _answer(where: str, value: object, name: str) -> str:
    """Return an answer as it is written. A number and a boolean are written as a label is."""
    answer = value if isinstance(value, str) else normal_label(value)
    if answer is None:
        raise InputError(f"{where}: {name!r} is {shown(value)}; give an answer as a text")
    _check_characters(where, name, answer)
    return answer


def _field(where: str, row: dict[str, Any], name: str, key: str, naming: Naming) -> Any:
    if name not in row:
        has = listing(row) or "none"
        raise InputError(
            f"{where}: field {name!r} is missing (fields: {has}); "
            f"add it or name another one as {naming.setting(key)}"
        )
    return row[name]


def _label(where: str, value: object, reading: Reading) -> str:
    known = reading.labels
    text = value.strip() if isinstance(value, str) else None
    label = text if text is not None and known and text in known else normal_label(value)
    if label is None:
        raise InputError(
            f"{where}: {reading.label!r} is {shown(value)}; give a label as a text, a number or a"
            " boolean"
        )
    _check_characters(where, str(reading.label), label)
    if known is None or label in known:
        return label
    alike = [one for one in known if normal_label(one) == label]
    if len(alike) == 1:
        return alike[0]
    listed = listing(known)
    raise InputError(
        f"{where}: {reading.label!r} is {shown(value)}; {reading.remedy} (known are {listed})"
    )


def normal_label(value: object) -> str | None:
    """Return a label as a text, the same for a value in JSON and in CSV. None: it is no label.

    Booleans are "true" and "false", also as the texts that a spreadsheet writes. A number without a
    fraction is a whole number: 1.0 is "1".
    """
    if not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # a float such as 1e300 is written out, like the whole number that it is
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value) if whole else value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", text) or None


def listing(labels: Iterable[str], most: int = 12) -> str:
    """Return labels as a message lists them."""
    every = [shown(label) for label in labels]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def _check_characters(where: str, name: str, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where}: {name!r} holds half a surrogate pair; remove it")

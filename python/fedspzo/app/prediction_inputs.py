"""Reads what a saved model is asked: texts to predict, or examples to be measured on.

This module does not import torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedspzo.errors import InputError

from . import examples
from .examples import MOST_LINES, Found, Reading
from .naming import Naming
from .rows import UTF_8, content, table, text_of, unpacked
from .saved_task import SavedTask
from .sources import ENDINGS, SUFFIXES, format_of
from .streams import say

LINES = "lines"
FORMS = (LINES, *(suffix.removeprefix(".") for suffix in SUFFIXES))
"""What stdin may hold: a text a line, or one of the data formats."""


_OPTIONS = Naming(
    {
        **{"text": "--text", "prompt": "--text", "label": "--label", "answer": "--label"},
        "encoding": "--encoding",
    }
)
"""The options of `fedspzo predict` and `fedspzo eval`, in place of keys of [data]."""


def read_texts(
    path: Path | None,
    saved: SavedTask,
    *,
    form: str = LINES,
    text: str | None = None,
    encoding: str | None = None,
) -> list[str]:
    """Return the texts, or a completion's prompts, of a file or of stdin.

    Args:
        path: the file. One with the ending of a data format has rows, another has a text a line.
            None: stdin.
        saved: the model's task.
        form: what stdin holds, one of `FORMS`. Default "lines".
        text: name of the field with the text. Default None: as in the run.
        encoding: encoding of the texts. Default None: a data file has that of the run's files, and
            lines have UTF-8, which a terminal writes.

    Raises:
        InputError: a text is missing, or there is no such form; one line names the place and the
            remedy.
    """
    if form not in FORMS:
        raise InputError(f"--input is {form!r}; give one of {', '.join(FORMS)}")
    if path is not None:
        data = content(path)
    else:
        data = b"" if sys.stdin is None else sys.stdin.buffer.read()
        path = Path("stdin" if form == LINES else f"stdin.{form}")
    if format_of(path) not in SUFFIXES:
        return _lines(path, data, encoding or UTF_8)
    reading = Reading(text=text or _text_field(saved), label=None, naming=_OPTIONS)
    return [one.text for one in _read(path, data, reading, saved, encoding).examples]


def read_examples(
    path: Path,
    saved: SavedTask,
    *,
    text: str | None = None,
    label: str | None = None,
    encoding: str | None = None,
) -> Found:
    """Return the examples of a file in one of the data formats, read as the run read its own.

    Args:
        path: the file.
        saved: the model's task.
        text: name of the field with the text, or with a completion's prompt. Default None: as in
            the run.
        label: name of the field with the label, or with the answer. Default None: as in the run.
        encoding: encoding of the file. Default None: that of the run's files.

    Raises:
        InputError: the file has a mistake; one line names it and the remedy.
    """
    if format_of(path) not in SUFFIXES:
        raise InputError(f"'{path}' has no labels; give a {ENDINGS} file")
    task = saved.task
    known: tuple[str, ...] = ()
    if task.type == "prompt":
        known = tuple(task.verbalizers)
    elif task.type == "classification":
        known = tuple(dict.fromkeys((*task.labels, *saved.recipe.labels)))
    reading = Reading(
        text=text or _text_field(saved),
        label=(label or saved.data.label) if known else None,
        answer=(label or saved.data.answer) if task.type == "completion" else None,
        labels=known or None,
        remedy="it is no label of the model: correct it",
        skip=saved.data.on_bad_row == "skip",
        naming=_OPTIONS,
    )
    return _read(path, content(path), reading, saved, encoding)


def _read(
    path: Path, data: bytes, reading: Reading, saved: SavedTask, encoding: str | None
) -> Found:
    """Make examples of a data file's content, in the run's encoding unless one is given."""
    if encoding is None:
        encoding, data = saved.data.encoding, unpacked(path, data)
        # in an encoding of single bytes any bytes are a text, so that nobody is told of a wrong one
        if encoding not in (UTF_8, "utf-16") and _is_utf_8(data):
            say(
                f"fedspzo: '{path}' is read as {encoding}, as in the run, but is UTF-8 too; if it"
                " is that, give --encoding utf-8"
            )
    return examples.read(table(path, data, reading.fields, encoding, _OPTIONS), reading)


def _is_utf_8(data: bytes) -> bool:
    """Return whether bytes are a text in UTF-8 that another encoding reads as another text."""
    try:
        return not data.decode("utf-8").isascii()
    except UnicodeDecodeError:
        return False


def _text_field(saved: SavedTask) -> str:
    return saved.data.prompt if saved.task.type == "completion" else saved.data.text


def _lines(path: Path, data: bytes, encoding: str) -> list[str]:
    text = text_of(path, data, encoding, _OPTIONS)
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path}: holds no text; give one a line")
    blank = [number for number, line in enumerate(lines, 1) if not line]
    if blank:
        listed = ", ".join(map(str, blank[:MOST_LINES]))
        more = f" and {len(blank) - MOST_LINES} more" if len(blank) > MOST_LINES else ""
        raise InputError(f"{path}: has no text in line {listed}{more}; give one a line")
    return lines

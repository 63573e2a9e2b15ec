"""Reads the rows of JSONL and CSV files, and says what a file is if it is something else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError

Row = tuple[int, dict[str, Any]]
"""A row's line number, from 1, and its fields."""

SHOWN = 60
"""Number of characters of a user's value that a message repeats."""
LONGEST_CELL = 2**31 - 1
"""Longest cell of a CSV file. Python's default, 131,072 characters, is less than a long text."""

_FORMATS = {
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"PK\x03\x04": "a zip archive, as Excel writes; save it as CSV",
    b"PAR1": "a Parquet file; convert it to JSON Lines or CSV",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}
"""What a file is that begins with these bytes, and the remedy."""


def content(path: Path) -> bytes:
    """Return a file's bytes. Raise InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from None


def rows(path: Path, data: bytes) -> Iterator[Row]:
    """Yield the rows of a file's content. Blank lines are passed over.

    Args:
        path: the file, whose ending says the format, .jsonl or .csv in any case.
        data: its content, in UTF-8. A byte order mark is allowed.

    Raises:
        InputError: it has another format, or a row is damaged; one line names the line.
    """
    for magic, what in _FORMATS.items():
        if data.startswith(magic):
            raise InputError(f"{path}: is {what}")
    text = _text(path, data)
    yield from (_csv if path.suffix.lower() == ".csv" else _jsonl)(path, text)


def shown(value: object) -> str:
    """Return a value as a message repeats it, cut to `SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _jsonl(path: Path, text: str) -> Iterator[Row]:
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
            reason = str(error).split("(char")[0].strip()[:SHOWN]
            if text.lstrip()[:1] == "[" or line.strip() == "{":
                reason += "; is the file one JSON document?"
            raise InputError(
                f"{path}, line {number}: not valid JSON ({reason}); "
                'write one object a line, {"text": "...", "label": "..."}'
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}: {line.strip()[:SHOWN]!r} is no JSON object; "
                'write {"text": "...", "label": "..."}'
            )
        yield number, row


def _csv(path: Path, text: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        start = 1
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                pass
            elif header is None:
                header = _header(path, start, cells)
            else:
                # a spreadsheet may end each row with empty cells, ",,"
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {start}: {len(cells)} cells for {len(header)} columns "
                        f"({_names(header)}); quote texts that hold commas"
                    )
                yield start, dict(zip(header, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not valid CSV ({error}); "
            "quote texts with double quotes and double those inside"
        ) from None


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    while not header[-1]:
        header.pop()
    if len(header) == 1:
        for separator, name in ((";", "';'"), ("\t", "tabs"), ("|", "'|'")):
            if separator in header[0]:
                raise InputError(
                    f"{path}, line {line}: the columns ({shown(header[0])}) are separated by"
                    f" {name}; save the file with commas"
                )
    if len(set(header)) < len(header):
        raise InputError(
            f"{path}, line {line}: a column occurs twice ({_names(header)}); give each its own name"
        )
    return header


def _names(header: list[str]) -> str:
    text = ", ".join(header)
    return text if len(text) <= 3 * SHOWN else f"{text[: 3 * SHOWN]} ..."

"""Reads the rows of JSON, CSV and Parquet files, and says what another file is."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError

from .arrow import parquet_rows
from .naming import IN_CONFIG, Naming
from .sources import Source, format_of

Row = tuple[int | str, dict[str, Any]]
"""A row's place, such as its line number from 1, and its fields."""

SHOWN = 60
"""Number of characters of a user's value that a message repeats."""
LONGEST_CELL = 2**31 - 1
"""Longest cell of a CSV file. Python's default, 131,072 characters, is less than a long text."""
SEPARATORS = (",", ";", "\t", "|")
"""What may separate a CSV file's columns."""
UTF_8 = "utf-8"

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_ZIP = b"PK\x03\x04"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_ENCLOSED = re.compile(r'(?:^|\t)"[^\t]*"(?:\t|\r?$)', re.MULTILINE)
"""A cell of a tab-separated file that stands in quotes."""


@dataclass(frozen=True)
class Table:
    """The rows of a file, a folder or a dataset.

    Attributes:
        source: the file, folder or dataset, as messages name it.
        unit: what a row's place is: "line", "row" or "file".
        rows: the rows. Reading one raises InputError if it is damaged.
    """

    source: Source
    unit: str
    rows: Iterator[Row]

    def where(self, place: int | str) -> str:
        """Return the words for a row's place."""
        return f"{self.source}, {self.unit} {place}"


def content(path: Path) -> bytes:
    """Return a file's bytes. Raise InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from None


def table(
    path: Path,
    data: bytes,
    wanted: Collection[str],
    encoding: str = UTF_8,
    naming: Naming = IN_CONFIG,
) -> Table:
    """Return the rows of a file's content. Blank lines are passed over.

    Args:
        path: the file. Its ending says the format, unless the content does: gzip, Parquet, a JSON
            array.
        data: its content.
        wanted: the fields that are needed. A Parquet file has no others in its rows.
        encoding: encoding of a text file. UTF-8 may have a byte order mark. Default: UTF-8.
        naming: how a message names the encoding's setting. Default: as in a config.

    Raises:
        InputError: it has another format; one line names the remedy.
    """
    data = unpacked(path, data)
    if data.startswith(_PARQUET) or format_of(path) == ".parquet":
        return Table(path, "row", parquet_rows(path, data, wanted))
    if data.startswith(_ZIP):
        raise InputError(f"{path}: is a zip archive, as Excel writes; save it as CSV")
    text = text_of(path, data, encoding, naming)
    if format_of(path) in (".csv", ".tsv"):
        return Table(path, "line", _csv(path, text))
    if text.lstrip()[:1] == "[":
        return Table(path, "row", _json_array(path, text))
    return Table(path, "line", _jsonl(path, text))


def shown(value: object) -> str:
    """Return a value as a message repeats it, cut to `SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def text_of(path: Path, data: bytes, encoding: str, naming: Naming = IN_CONFIG) -> str:
    """Decode a file's content.

    Args:
        path: the file, for messages.
        data: its content.
        encoding: its encoding.
        naming: how a message names the encoding's setting. Default: as in a config.

    Raises:
        InputError: it has another encoding; one line names the place and the remedy.
    """
    if encoding != "utf-16" and data.startswith(_UTF_16):
        raise InputError(
            f"{path}: is UTF-16 text; set {naming.setting('encoding', 'utf-16')}, or save it as"
            " UTF-8"
        )
    try:
        return data.decode("utf-8-sig" if encoding == UTF_8 else encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        latin = naming.setting("encoding", "latin-1")
        other = f"save the file as UTF-8, or say what it is as {latin}"
        if encoding != UTF_8:
            other = f"correct {naming.setting('encoding')}"
        at = f"{path}, line {line}" if encoding != "utf-16" else f"{path}, byte {error.start}"
        raise InputError(
            f"{at}: byte 0x{error.object[error.start]:02x} is not {encoding.upper()}; {other}"
        ) from None


def unpacked(path: Path, data: bytes) -> bytes:
    """Return a file's content, unpacked if it is compressed by gzip.

    Raises:
        InputError: the compressed content is damaged.
    """
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: is compressed by gzip, and damaged ({error}); pack it anew"
        ) from None


def _json_array(path: Path, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError(
            f"{path}, line {line}: not valid JSON ({_reason(error)}); write an array of objects,"
            ' [{"text": "...", "label": "..."}], or one object a line'
        ) from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, row {number}: {shown(row)} is no JSON object; "
                'write {"text": "...", "label": "..."}'
            )
        yield number, row


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
            reason = _reason(error)
            if line.strip() == "{":
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


def _reason(error: Exception) -> str:
    return str(error).split("(char")[0].strip()[:SHOWN]


def _csv(path: Path, text: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    separator = _separator(text)
    # programs that write tabs often leave quotes as they are
    quoted = separator != "\t" or _ENCLOSED.search(text) is not None
    reader = csv.reader(
        io.StringIO(text, newline=""),
        strict=True,
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
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
                        f"({_names(header)}); quote texts that hold {_NAMES[separator]}"
                    )
                yield start, dict(zip(header, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not valid CSV ({error}); "
            "quote texts with double quotes and double those inside"
        ) from None


_NAMES = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'"}


def _separator(text: str) -> str:
    """Return what separates the columns: that which gives the first row the most cells."""

    def cells(separator: str) -> int:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            first = next((row for row in reader if any(cell.strip() for cell in row)), [])
        except csv.Error:
            return 0
        return len(first)

    return max(SEPARATORS, key=cells)


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    while not header[-1]:
        header.pop()
    if len(set(header)) < len(header):
        raise InputError(
            f"{path}, line {line}: a column occurs twice ({_names(header)}); give each its own name"
        )
    return header


def _names(header: list[str]) -> str:
    text = ", ".join(header)
    return text if len(text) <= 3 * SHOWN else f"{text[: 3 * SHOWN]} ..."

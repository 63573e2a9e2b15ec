"""Read a journal from disk: a header and records, appended one by one, never changed.

docs/journal.md describes every byte, and `journal.writer` writes them. A file that ends inside its
last record was torn by a crash, and that record is cut off. Anything else that is wrong with the
bytes is an error that names the record and its offset. Each checksum covers all bytes before it,
so a record that was changed, moved, lost or put in is found.

This module imports nothing heavy, and does not know what a record means.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedspzo.errors import InputError, one_line

from .damage import (
    CHECKSUM,
    EVALUATION,
    HEAD,
    HEADER,
    OVERHEAD,
    ROUND,
    ROUNDS,
    TERMS,
    Damage,
    JournalWarning,
    never_written,
    rounds_behind,
    rounds_in,
)

__all__ = [
    "CHECKSUM",
    "COMPACTED",
    "EVALUATION",
    "HEAD",
    "HEADER",
    "MAGIC",
    "OVERHEAD",
    "PREAMBLE",
    "ROUND",
    "ROUNDS",
    "TERMS",
    "VERSION",
    "Entry",
    "JournalError",
    "JournalReader",
]

MAGIC = b"FSPZJRNL"
VERSION = 3

COMPACTED = "was compacted, so its run cannot go on; resume the journal it was made from"
"""The reason why a journal with a record of kind ROUNDS is not continued."""

PREAMBLE = struct.Struct("<8sI")  # magic, version
_UNWRITTEN = bytes(CHECKSUM.size)
_REMEDY = (
    "restore the file from a copy, or use what is before it ('fedspzo journal salvage', or"
    " --salvage)"
)


class JournalError(InputError):
    """Reports a journal that cannot be read or written, in one line: where, why, and the remedy."""


@dataclass(frozen=True)
class Entry:
    """Holds one record as bytes.

    Attributes:
        number: the number of records before it; the header's is 0.
        offset: the offset of its first byte in the file.
        kind: HEADER, ROUND, TERMS, EVALUATION or ROUNDS.
        body: its content.
    """

    number: int
    offset: int
    kind: int
    body: bytes

    @property
    def size(self) -> int:
        """Its size in the file, in bytes."""
        return OVERHEAD + len(self.body)


class JournalReader:
    """Reads a journal front to back, one record in memory at a time.

    Args:
        path: the file, which is not changed.
        salvage: end an iteration at a record whose checksums fail, and keep the place in `broken`.
            Default False: raise JournalError.

    Attributes:
        header: the header's JSON object.
        start: the offset of the first record after the header.
        end: the offset at which the whole records end. Like `torn` and `chain` it is known once
            every record has been read.
        torn: the number of bytes of a torn record at the end.
        chain: the last whole record's checksum.
        broken: the damage that an iteration has found. None: none.

    Raises:
        JournalError: there is no such file, it is no journal, or it is damaged. An iteration may
            raise it too.
    """

    def __init__(self, path: Path, *, salvage: bool = False) -> None:
        self.path = path
        self.salvage = salvage
        self.broken: Damage | None = None
        self.end = self.torn = self.chain = 0
        first = next(self._scan(), None)
        if first is None:
            raise JournalError(f"{path}: ends inside its header; restore the file from a copy")
        self.header = self._object(first)
        self.start = first.offset + first.size

    def __iter__(self) -> Iterator[Entry]:
        """Yield every record but the header, each checked."""
        entries = self._scan()
        next(entries)
        yield from entries

    def damage(self, entry: Entry, reason: object) -> JournalError:
        """Return the error for a record whose checksums are right and whose values are wrong."""
        return JournalError(
            f"{self.path}: record {entry.number} at byte {entry.offset} is damaged:"
            f" {one_line(reason)}; restore the file from a copy"
        )

    def warn(self) -> None:
        """Warn of the damage that an iteration has found, if there is any."""
        if self.broken is not None:
            warnings.warn(f"{self.path}: {self.broken}", JournalWarning, stacklevel=2)

    def _object(self, entry: Entry) -> dict[str, Any]:
        if entry.kind != HEADER:
            raise self.damage(entry, f"its kind is {entry.kind}, a header's is {HEADER}")
        try:
            header = json.loads(entry.body)
        except (ValueError, RecursionError) as error:
            raise self.damage(entry, f"it is not JSON ({error})") from None
        if not isinstance(header, dict):
            raise self.damage(entry, "it is no JSON object")
        return header

    def _scan(self) -> Iterator[Entry]:
        try:
            with self.path.open("rb") as file:
                yield from self._entries(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise JournalError(
                f"{self.path}: cannot be read ({error.strerror}); give the path of a journal"
            ) from None

    def _entries(self, file: BinaryIO, size: int) -> Iterator[Entry]:
        preamble = file.read(PREAMBLE.size)
        self._check_preamble(preamble)
        chain, end, number, kept = zlib.crc32(preamble), PREAMBLE.size, 0, 0
        reason = None
        while size - end >= OVERHEAD:
            head = file.read(HEAD.size)
            length, kind, check = HEAD.unpack(head)
            head_chain = zlib.crc32(head[: -CHECKSUM.size], chain)
            if check != head_chain:
                if not _only_zeros(head, file):
                    reason = "its length or kind fails its checksum"
                break
            if size - end < OVERHEAD + length:
                break
            body, check = file.read(length), file.read(CHECKSUM.size)
            body_chain = zlib.crc32(body, head_chain)
            if check != CHECKSUM.pack(body_chain):
                if check != _UNWRITTEN or size - end != OVERHEAD + length:
                    reason = "its body fails its checksum"
                break
            yield Entry(number, end, kind, body)
            kept += rounds_in(kind, body)
            chain, end, number = body_chain, end + OVERHEAD + length, number + 1
        self.chain, self.end, self.torn = chain, end, size - end
        if reason is None:
            return
        file.seek(end)
        rest = file.read()
        if number and never_written(rest, end):
            return
        broken = Damage(number, end, reason, kept, rounds_behind(rest))
        if not number or not self.salvage:
            remedy = _REMEDY if number else "restore the file from a copy"
            raise JournalError(f"{self.path}: {broken}; {remedy}")
        self.broken, self.torn = broken, 0

    def _check_preamble(self, data: bytes) -> None:
        if len(data) < PREAMBLE.size or not data.startswith(MAGIC):
            raise JournalError(
                f"{self.path}: starts with {data[: len(MAGIC)]!r}, a journal with {MAGIC!r};"
                " give the path of a journal"
            )
        version = PREAMBLE.unpack(data)[1]
        if version != VERSION:
            raise JournalError(
                f"{self.path}: the journal has format version {version}, this fedspzo reads"
                f" {VERSION}; install the release that wrote it"
            )


def _only_zeros(start: bytes, file: BinaryIO) -> bool:
    """Tell whether the file goes on with zeros alone: it had grown, but was not yet written."""
    while start and not any(start):
        start = file.read(2**20)
    return not start

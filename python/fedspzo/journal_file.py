"""The journal on disk: a header and records, appended one by one, never changed.

docs/journal.md has every byte. A record is on disk when `append` returns. A file that ends inside
its last record was torn by a crash: that record is cut off. Anything else that is wrong with the
bytes is an error that names the record and its offset. Each checksum covers all that came before,
so a record that was changed, moved, lost or put in is found.

Nothing heavy is imported here, and nothing is known of what a record means.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .closing import Closing
from .output import write_atomic
from .tables import InputError, one_line

MAGIC = b"FSPZJRNL"
VERSION = 1
HEADER, ROUND, TERMS, EVALUATION = 1, 2, 3, 4
"""Kinds of records."""

BODY_LIMIT = 2**32

_PREAMBLE = struct.Struct("<8sI")  # magic, version
_HEAD = struct.Struct("<III")  # bytes of the body, kind, checksum of these two
_CHECKSUM = struct.Struct("<I")
_UNWRITTEN = bytes(_CHECKSUM.size)

OVERHEAD = _HEAD.size + _CHECKSUM.size
"""Bytes of a record besides its body."""


class JournalError(InputError):
    """A journal that cannot be read or written: one line that says where, why, and the remedy."""


@dataclass(frozen=True)
class Entry:
    """One record.

    Attributes:
        number: how many came before it; the header is 0.
        offset: of its first byte in the file.
        kind: HEADER, ROUND, TERMS or EVALUATION.
        body: what it holds.
    """

    number: int
    offset: int
    kind: int
    body: bytes

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return OVERHEAD + len(self.body)


class JournalReader:
    """Reads a journal front to back, one record in memory at a time.

    Args:
        path: the file; it is not changed.

    Attributes:
        header: the header's JSON object.
        end: where the whole records end, `torn`: how many bytes of a torn record follow, `chain`:
            the last checksum. All are known once every record has been read.

    Raises:
        JournalError: there is no such file, it is no journal, or (also later, from an iteration)
            it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = self.torn = self.chain = 0
        first = next(self._scan(), None)
        if first is None:
            raise JournalError(f"{path}: ends inside its header; restore the file from a copy")
        self.header = self._object(first)

    def __iter__(self) -> Iterator[Entry]:
        """Every record but the header, each checked."""
        entries = self._scan()
        next(entries)
        yield from entries

    def damage(self, entry: Entry, reason: object) -> JournalError:
        """The error for a record whose checksums are right and whose values are not."""
        return self._damage(entry.number, entry.offset, reason)

    def _damage(self, number: int, offset: int, reason: object) -> JournalError:
        return JournalError(
            f"{self.path}: record {number} at byte {offset} is damaged: {one_line(reason)};"
            " restore the file from a copy"
        )

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
        preamble = file.read(_PREAMBLE.size)
        self._check_preamble(preamble)
        chain, end, number = zlib.crc32(preamble), _PREAMBLE.size, 0
        while size - end >= OVERHEAD:
            head = file.read(_HEAD.size)
            length, kind, check = _HEAD.unpack(head)
            head_chain = zlib.crc32(head[: -_CHECKSUM.size], chain)
            if check != head_chain:
                if _only_zeros(head, file):
                    break
                raise self._damage(number, end, "its length or kind fails its checksum")
            if size - end < OVERHEAD + length:
                break
            body, check = file.read(length), file.read(_CHECKSUM.size)
            body_chain = zlib.crc32(body, head_chain)
            if check != _CHECKSUM.pack(body_chain):
                if check == _UNWRITTEN and size - end == OVERHEAD + length:
                    break
                raise self._damage(number, end, "its body fails its checksum")
            yield Entry(number, end, kind, body)
            chain, end, number = body_chain, end + OVERHEAD + length, number + 1
        self.chain, self.end, self.torn = chain, end, size - end

    def _check_preamble(self, data: bytes) -> None:
        if len(data) < _PREAMBLE.size or not data.startswith(MAGIC):
            raise JournalError(
                f"{self.path}: starts with {data[: len(MAGIC)]!r}, a journal with {MAGIC!r};"
                " give the path of a journal"
            )
        version = _PREAMBLE.unpack(data)[1]
        if version != VERSION:
            raise JournalError(
                f"{self.path}: the journal has format version {version}, this fedspzo reads"
                f" {VERSION}; install the release that wrote it"
            )


class JournalWriter(Closing):
    """Appends records. One process at a time may write a journal; its caller sees to that.

    Made by `create` or `resume`; a context manager that closes the file.

    Attributes:
        path: the file.
        torn: bytes of a torn record that `resume` cut off.
    """

    def __init__(self, path: Path, *, end: int, chain: int, torn: int = 0) -> None:
        self.path = path
        self.torn = torn
        self._end, self._chain = end, chain
        with _explained(self.path):
            self._file: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            if torn:
                os.ftruncate(self._file, end)
                os.fsync(self._file)

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> JournalWriter:
        """Begin a journal, in place of whatever file is there: afterwards its header is on disk.

        Args:
            path: the file; its folder exists.
            header: a JSON object (docs/journal.md).

        Raises:
            JournalError: the file cannot be written.
        """
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        preamble = _PREAMBLE.pack(MAGIC, VERSION)
        data, chain = _frame(HEADER, text.encode(), zlib.crc32(preamble))
        with _explained(path):
            write_atomic(path, preamble + data)
        return cls(path, end=len(preamble) + len(data), chain=chain)

    @classmethod
    def resume(cls, path: Path) -> JournalWriter:
        """Continue a journal after its last whole record; a torn one is cut off.

        Raises:
            JournalError: the file is damaged, or cannot be written.
        """
        reader = JournalReader(path)
        for _ in reader:
            pass
        return cls(path, end=reader.end, chain=reader.chain, torn=reader.torn)

    def append(self, kind: int, body: bytes) -> None:
        """Add a record: afterwards it is on disk. When this raises, the journal is as before.

        Raises:
            JournalError: the file cannot be written, e.g. because the disk is full.
            ValueError: the body has 2**32 bytes or more, or the writer is closed.
        """
        if self._file is None:
            raise ValueError(f"the journal '{self.path}' is closed; resume it")
        if len(body) >= BODY_LIMIT:
            raise ValueError(f"body has {len(body)} bytes; give fewer than {BODY_LIMIT}")
        data, chain = _frame(kind, body, self._chain)
        try:
            with _explained(self.path):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
        except BaseException:
            self._cut()
            raise
        self._end, self._chain = self._end + len(data), chain

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _cut(self) -> None:
        """Take back what part of a record was written. If that fails too, the next resume does."""
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, self._end)
        except OSError:
            self.close()


def _frame(kind: int, body: bytes, chain: int) -> tuple[bytes, int]:
    """A record's bytes, and its checksum, which the next record's continue."""
    start = _HEAD.pack(len(body), kind, 0)[: -_CHECKSUM.size]
    head_chain = zlib.crc32(start, chain)
    body_chain = zlib.crc32(body, head_chain)
    return start + _CHECKSUM.pack(head_chain) + body + _CHECKSUM.pack(body_chain), body_chain


def _only_zeros(start: bytes, file: BinaryIO) -> bool:
    """Whether the file goes on with nothing but zeros: it had grown, but was not written."""
    while start and not any(start):
        start = file.read(2**20)
    return not start


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"{path}: cannot be written ({error.strerror}); the whole records in it are safe:"
            " mend that and resume"
        ) from None

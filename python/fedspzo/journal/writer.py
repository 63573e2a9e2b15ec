"""Write a journal to disk: record by record, or whole.

A record is on disk when `append` returns. This module does not know what a record means.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedspzo.files import Closing, file_atomic

from .reader import CHECKSUM, HEAD, HEADER, MAGIC, PREAMBLE, VERSION, JournalError, JournalReader

BODY_LIMIT = 2**32


class JournalWriter(Closing):
    """Appends records to a journal. The caller sees to it that one process at a time does so.

    `create` and `resume` make one. It is a context manager that closes the file.

    Attributes:
        path: the file.
        torn: number of bytes of a torn record that `resume` cut off.
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
        """Begin a journal, whose header is on disk when this returns. It replaces any file there.

        Args:
            path: the file; its folder exists.
            header: a JSON object (docs/journal.md).

        Raises:
            JournalError: the file cannot be written.
        """
        with _explained(path):
            end, chain = write_whole(path, header)
        return cls(path, end=end, chain=chain)

    @classmethod
    def resume(cls, path: Path) -> JournalWriter:
        """Continue a journal after its last whole record, and cut off a torn one.

        Raises:
            JournalError: the file is damaged, or cannot be written.
        """
        reader = JournalReader(path)
        for _ in reader:
            pass
        return cls(path, end=reader.end, chain=reader.chain, torn=reader.torn)

    def append(self, kind: int, body: bytes) -> None:
        """Add a record, which is on disk when this returns. If it raises, the journal is as before.

        Args:
            kind: the record's kind (`journal.reader`).
            body: the record's content.

        Raises:
            JournalError: the file cannot be written, for example because the disk is full.
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
        """Cut off a record that was written in part. If that fails too, the next resume does it."""
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, self._end)
        except OSError:
            self.close()


def write_whole(
    path: Path, header: Mapping[str, Any], records: Iterable[tuple[int, bytes]] = ()
) -> tuple[int, int]:
    """Create or replace a journal. It is whole and on disk when this returns.

    Args:
        path, header: as for `JournalWriter.create`.
        records: the kind and body of each record. Default: none.

    Returns:
        The file's size in bytes, and its last checksum.

    Raises:
        OSError: the file cannot be written; any file there is as before.
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    preamble = PREAMBLE.pack(MAGIC, VERSION)
    end, chain = len(preamble), zlib.crc32(preamble)
    with file_atomic(path) as file:
        file.write(preamble)
        for kind, body in itertools.chain([(HEADER, text.encode())], records):
            data, chain = _frame(kind, body, chain)
            file.write(data)
            end += len(data)
    return end, chain


def _frame(kind: int, body: bytes, chain: int) -> tuple[bytes, int]:
    """Return a record's bytes, and its checksum, which the next record's checksums continue."""
    start = HEAD.pack(len(body), kind, 0)[: -CHECKSUM.size]
    head_chain = zlib.crc32(start, chain)
    body_chain = zlib.crc32(body, head_chain)
    return start + CHECKSUM.pack(head_chain) + body + CHECKSUM.pack(body_chain), body_chain


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"{path}: cannot be written ({error.strerror}); the whole records in it are safe:"
            " mend that and resume"
        ) from None

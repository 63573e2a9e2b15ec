"""The journal on disk: every byte is told apart from damage, and nothing whole is ever lost."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from fedspzo.journal.reader import EVALUATION, OVERHEAD, ROUND, TERMS, JournalError, JournalReader
from fedspzo.journal.records import Record, Terms
from fedspzo.journal.writer import JournalWriter

HEADER = {"base": "ä", "rounds": [1, 2.5, None]}
BODIES = [(ROUND, b"first"), (TERMS, b""), (EVALUATION, bytes(40)), (ROUND, b"\xff" * 7)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.fspz"
    with JournalWriter.create(path, HEADER) as writer:
        for kind, body in BODIES:
            writer.append(kind, body)
    return path


def contents(path: Path) -> list[tuple[int, bytes]]:
    return [(entry.kind, entry.body) for entry in JournalReader(path)]


def test_what_was_appended_is_read(path: Path) -> None:
    reader = JournalReader(path)
    assert reader.header == HEADER
    entries = list(reader)
    assert [(entry.kind, entry.body) for entry in entries] == BODIES
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    assert reader.torn == 0
    assert reader.end == path.stat().st_size == entries[-1].offset + entries[-1].size
    assert [path.read_bytes()[e.offset + 9 : e.offset + e.size - 4] for e in entries] == [
        body for _, body in BODIES
    ]


def test_the_bytes_are_those_of_the_documentation(path: Path) -> None:
    # By hand, from docs/journal.md: whoever reads a journal without this package reads this.
    data = path.read_bytes()
    text = '{"base":"ä","rounds":[1,2.5,null]}'.encode()
    expected = b"FSPZJRNL" + struct.pack("<I", 3)
    check = zlib.crc32(expected)
    for kind, body in [(1, text), *BODIES]:
        head = struct.pack("<IB", len(body), kind)
        check = zlib.crc32(head, check)
        expected += head + struct.pack("<I", check) + body
        check = zlib.crc32(body, check)
        expected += struct.pack("<I", check)
    assert data == expected


def test_a_file_cut_anywhere_keeps_its_whole_records(path: Path) -> None:
    data = path.read_bytes()
    entries = list(JournalReader(path))
    start = entries[0].offset
    for length in range(start, len(data)):
        path.write_bytes(data[:length])
        whole = [e for e in entries if e.offset + e.size <= length]
        reader = JournalReader(path)
        assert [(e.kind, e.body) for e in reader] == BODIES[: len(whole)]
        assert reader.torn == length - (whole[-1].offset + whole[-1].size if whole else start)
        with JournalWriter.resume(path) as writer:
            assert writer.torn == reader.torn
            writer.append(*BODIES[0])
        assert contents(path) == [*BODIES[: len(whole)], BODIES[0]]
        assert JournalReader(path).torn == 0
    for length in range(start):
        path.write_bytes(data[:length])
        with pytest.raises(JournalError, match=r"header|starts with"):
            JournalReader(path)


def test_every_changed_byte_is_found_and_its_record_named(path: Path) -> None:
    data = path.read_bytes()
    entries = list(JournalReader(path))
    for position in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= flip
            path.write_bytes(changed)
            with pytest.raises(JournalError) as error:
                contents(path)
            with pytest.raises(JournalError):
                JournalWriter.resume(path)
            assert path.read_bytes() == changed  # damage is left as it is
            for entry in entries:
                if entry.offset <= position < entry.offset + entry.size:
                    assert f"record {entry.number} at byte {entry.offset} is" in str(error.value)


def test_records_that_are_lost_moved_or_foreign_are_found(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    entries = list(JournalReader(path))
    parts = [data[e.offset : e.offset + e.size] for e in entries]
    start = data[: entries[0].offset]
    with JournalWriter.create(tmp_path / "other", {"another": "header"}) as other:
        other.append(*BODIES[0])
    foreign = next(iter(JournalReader(tmp_path / "other")))
    strange = (tmp_path / "other").read_bytes()[foreign.offset :]
    for pieces in (parts[1:], [parts[1], parts[0]], [parts[0], *parts], [strange]):
        path.write_bytes(start + b"".join(pieces))
        with pytest.raises(JournalError, match=r"record [12] at byte"):
            contents(path)


@pytest.mark.parametrize("keep", [0, 3, 12, 14])
def test_a_tail_the_file_system_had_not_written_is_torn(path: Path, keep: int) -> None:
    # After a power cut a file may have grown, and hold zeros where data should be.
    last = list(JournalReader(path))[-1]
    data = path.read_bytes()
    path.write_bytes(data[: last.offset + keep].ljust(len(data), b"\0"))
    if keep == 3:  # not zeros alone, and no head: that no crash explains
        with pytest.raises(JournalError, match="record 4"):
            contents(path)
        return
    with JournalWriter.resume(path) as writer:
        assert writer.torn == last.size
    assert contents(path) == BODIES[:-1]


def test_zeros_inside_are_damage(path: Path) -> None:
    entries = list(JournalReader(path))
    data = bytearray(path.read_bytes())
    first = entries[0]
    data[first.offset + first.size - 4 : first.offset + first.size] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(JournalError, match="record 1"):
        contents(path)


def test_what_is_no_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be read \\(No such file"):
        JournalReader(tmp_path / "none")
    with pytest.raises(JournalError, match="cannot be read \\(Is a directory"):
        JournalReader(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(b'{"round": 0}\n')
    with pytest.raises(JournalError, match="starts with b'\\{\"round\"'"):
        JournalReader(other)
    other.write_bytes(struct.pack("<8sI", b"FSPZJRNL", 9))
    with pytest.raises(JournalError, match="format version 9, this fedspzo reads 3; install"):
        JournalReader(other)


def test_a_full_disk_takes_back_what_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 3:
            return write(handle, data[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = path.read_bytes()
    with JournalWriter.resume(path) as writer:
        for name, broken, reason in (("write", full, "No space left"), ("fsync", failing, "Input")):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, broken)
                with pytest.raises(JournalError, match=f"{reason}.*the whole records .* are safe"):
                    writer.append(ROUND, b"more")
            assert path.read_bytes() == before
        writer.append(ROUND, b"more")
    assert contents(path) == [*BODIES, (ROUND, b"more")]


def test_what_cannot_be_taken_back_is_cut_off_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with JournalWriter.resume(path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            patch.setattr(os, "ftruncate", broken)
            with pytest.raises(JournalError):
                writer.append(ROUND, b"unsure")
        with pytest.raises(ValueError, match="is closed; resume it"):
            writer.append(ROUND, b"after")  # would stand after what is not known to be whole
    JournalWriter.resume(path).close()
    assert contents(path)[: len(BODIES)] == BODIES


LIMITED = """
import resource, signal, sys
from pathlib import Path
from fedspzo.journal.reader import ROUND, JournalError
from fedspzo.journal.writer import JournalWriter
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with JournalWriter.resume(path) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 90,) * 2)
    for _ in range(9):
        try:
            writer.append(ROUND, bytes(20))
        except JournalError as error:
            print(error)
            break
"""


def test_a_file_that_may_not_grow_stays_whole(path: Path) -> None:
    # The kernel itself refuses, in the middle of a record.
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert "cannot be written (File too large); the whole records in it are safe" in done.stdout
    reader = JournalReader(path)
    assert [(e.kind, e.body) for e in reader] == [*BODIES, *[(ROUND, bytes(20))] * 2]
    assert reader.torn == 0


def test_a_journal_in_place_of_an_old_one_is_whole_or_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(JournalError, match="No space left"):
        JournalWriter.create(path, {})
    assert contents(path) == BODIES
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("digest", [None, "0123456789abcdef" * 2])
@pytest.mark.parametrize("rounding_seed", [None, 0, 2**64 - 1])
def test_a_record_with_seeds_costs_twelve_bytes_a_term(
    digest: str | None, rounding_seed: int | None
) -> None:
    blocks = tuple(
        Terms(np.arange(n, dtype=np.uint64) << np.uint64(60), np.linspace(-1, 1, n, dtype="f4"))
        for n in (0, 7, 1000)
    )
    body = Record(5, blocks, rounding_seed).encode(digest)
    assert len(body) == 31 + 3 * 4 + 12 * 1007
    record, known = Record.decode(body)
    assert (record.round, record.rounding_seed, known) == (5, rounding_seed, digest)
    for before, after in zip(blocks, record.terms, strict=True):
        assert np.array_equal(before.seeds, after.seeds)
        assert np.array_equal(before.coeffs, after.coeffs)
    for wrong in (body[:-1], body + b"\0", body[:4] + b"\x09" + body[5:]):
        with pytest.raises(ValueError, match=r"body|flags"):
            Record.decode(wrong)


def test_overhead_is_what_the_documentation_says() -> None:
    assert OVERHEAD == 13

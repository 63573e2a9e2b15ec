"""What was reported as done is still there after a power cut at any point."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from power_cuts import Disk

from fedspzo.app.run_folder import JOURNAL, METRICS, RunFolder
from fedspzo.files import folder_atomic, make_folder, write_atomic
from fedspzo.journal.reader import ROUND, JournalReader
from fedspzo.journal.salvage import salvage
from fedspzo.journal.writer import JournalWriter

CUTS = int(os.environ.get("FEDSPZO_CUTS", "20"))
"""Number of ways in which each cut is tried, besides all and nothing kept."""
FSYNC, REPLACE = os.fsync, os.replace
SIZES = (3, 40, 700, 2000, 5, 1024, 90)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(root: Path) -> Iterator[Disk]:
    disk = Disk(root, random.Random(3))
    with disk.watched():
        yield disk
    disk.close()


def each_cut(disk: Disk, scratch: Path, check: Callable[[Path], None]) -> None:
    """Check what a cut leaves, on a disk of which nothing is watched."""
    for keep in (0.0, 1.0, *[None] * CUTS):
        target = scratch / "after"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", FSYNC)
            patch.setattr(os, "replace", REPLACE)
            disk.after_a_cut(target, keep=keep)
            check(target)
            shutil.rmtree(target)


def test_the_disk_loses_what_was_not_synced(root: Path, disk: Disk, tmp_path: Path) -> None:
    (root / "a").write_bytes(b"new")
    seen = set()
    for number in range(40):
        disk.after_a_cut(tmp_path / str(number))
        path = tmp_path / str(number) / "a"
        seen.add(path.read_bytes() if path.exists() else None)
    assert seen == {None, b"", b"new", bytes(3)}


def test_a_record_that_was_appended_stays(root: Path, disk: Disk, tmp_path: Path) -> None:
    choice = random.Random(1)
    path = root / JOURNAL
    done: list[bytes] = []

    def check(folder: Path) -> None:
        """All records that `append` returned for are there, and the journal can go on."""
        with JournalWriter.resume(folder / JOURNAL) as writer:
            writer.append(ROUND, b"next")
        bodies = [entry.body for entry in JournalReader(folder / JOURNAL)]
        assert bodies[: len(done)] == done
        assert len(bodies) <= len(done) + 2

    with JournalWriter.create(path, {"a": "header"}) as writer:
        for size in SIZES:
            body = choice.randbytes(size)
            with pytest.MonkeyPatch.context() as patch:  # cut before the record is synced
                patch.setattr(os, "fsync", lambda _: each_cut(disk, tmp_path, check))
                writer.append(ROUND, body)
            disk.synced(writer._file)  # type: ignore[arg-type]
            done.append(body)
            each_cut(disk, tmp_path, check)


def test_a_torn_record_that_was_cut_off_does_not_come_back(
    root: Path, disk: Disk, tmp_path: Path
) -> None:
    with JournalWriter.create(root / JOURNAL, {}) as writer:
        writer.append(ROUND, b"whole")
    with (root / JOURNAL).open("ab") as file:
        file.write(b"half of it")
    with JournalWriter.resume(root / JOURNAL):
        each_cut(
            disk,
            tmp_path,
            lambda folder: _equal(folder / JOURNAL, (root / JOURNAL).read_bytes()),
        )


def _equal(path: Path, content: bytes) -> None:
    assert path.read_bytes() == content


def test_a_file_is_the_old_or_the_new_one(root: Path, disk: Disk, tmp_path: Path) -> None:
    old, new = b"old" * 500, b"new" * 700
    write_atomic(root / "file", old)
    each_cut(disk, tmp_path, lambda folder: _equal(folder / "file", old))
    replace, fsync = os.replace, os.fsync

    def either(folder: Path) -> None:
        assert (folder / "file").read_bytes() in (old, new)

    def cut_before(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            each_cut(disk, tmp_path, either)
            real(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", cut_before(replace))
        patch.setattr(os, "fsync", cut_before(fsync))
        write_atomic(root / "file", new)
    each_cut(disk, tmp_path, lambda folder: _equal(folder / "file", new))


def test_a_folder_is_whole_with_the_folders_above(root: Path, disk: Disk, tmp_path: Path) -> None:
    make_folder(root / "a" / "b")
    with folder_atomic(root / "a" / "b" / "model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_bytes(b"w" * 3000)
        (temporary / "config").write_bytes(b"{}")

    def check(folder: Path) -> None:
        model = folder / "a" / "b" / "model"
        _equal(model / "inner" / "weights", b"w" * 3000)
        _equal(model / "config", b"{}")

    each_cut(disk, tmp_path, check)


def test_a_run_in_new_folders_stays(root: Path, disk: Disk, tmp_path: Path) -> None:
    path = Path("runs") / "today" / "mine"
    with RunFolder(root / path) as folder:
        folder.create()
        with JournalWriter.create(root / path / JOURNAL, {}) as writer:
            writer.append(ROUND, b"a round")
        each_cut(
            disk,
            tmp_path,
            lambda after: _equal(after / path / JOURNAL, (root / path / JOURNAL).read_bytes()),
        )
        folder.write(METRICS, "")
        folder.append(METRICS, {"round": 0})
        folder.finish({"summary": True})
        content = (root / path / METRICS).read_bytes()
        each_cut(disk, tmp_path, lambda after: _equal(after / path / METRICS, content))


def test_a_salvage_stays(root: Path, disk: Disk, tmp_path: Path) -> None:
    with JournalWriter.create(root / JOURNAL, {}) as writer:
        for size in SIZES:
            writer.append(ROUND, bytes(size))
    salvage(root / JOURNAL, root / "new.fspz")
    content = (root / JOURNAL).read_bytes()
    each_cut(disk, tmp_path, lambda after: _equal(after / "new.fspz", content))

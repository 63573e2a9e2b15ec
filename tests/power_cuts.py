"""A disk that loses power: what had not been synced is lost, in part or as a whole, in any order.

`Disk` watches a folder while a program writes there. A file's content is safe once the file has
been synced, and a name once its folder has been. `after_a_cut` makes the folder as it may look.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECTOR = 512


class Disk:
    """Remembers what is safe of each file and folder below `root`.

    A file is known by its inode, and held open so that its number is not given to another file.
    """

    def __init__(self, root: Path, choice: random.Random) -> None:
        self.root = root
        self.choice = choice
        self.safe: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.handles: dict[int, int] = {}
        self.syncs = 0
        for folder, _, files in os.walk(root):
            for name in files:
                self._synced_file(os.open(Path(folder) / name, os.O_RDONLY))
            self._synced_folder(os.open(folder, os.O_RDONLY))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note every sync within the context, before it returns."""
        fsync = os.fsync

        def noted(handle: int) -> None:
            fsync(handle)
            self.synced(handle)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            yield

    def synced(self, handle: int) -> None:
        self.syncs += 1
        path = os.readlink(f"/proc/self/fd/{handle}")
        (self._synced_folder if os.path.isdir(path) else self._synced_file)(os.dup(handle))

    def _synced_file(self, handle: int) -> None:
        self.safe[self._hold(handle)] = self._content(handle)

    def _synced_folder(self, handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        self.names[self._hold(handle)] = {
            name: self._hold(os.open(os.path.join(path, name), os.O_RDONLY))
            for name in os.listdir(path)
        }

    def _hold(self, handle: int) -> int:
        number = os.fstat(handle).st_ino
        if number in self.handles:
            os.close(handle)
        else:
            self.handles[number] = handle
        return number

    def _content(self, handle: int) -> bytes:
        with open(f"/proc/self/fd/{handle}", "rb") as file:
            return file.read()

    def after_a_cut(self, target: Path, *, keep: float | None = None) -> None:
        """Make the folder `target` as `root` may look after a cut now.

        Args:
            target: a new folder.
            keep: the share of what was not synced that is on disk nevertheless. Default: any.
        """
        keep = self.choice.random() if keep is None else keep
        self._make(os.stat(self.root).st_ino, self.root, target, keep)

    def _make(self, number: int, now: Path | None, target: Path, keep: float) -> None:
        target.mkdir()
        safe = self.names.get(number, {})
        there: dict[str, int] = {}
        if now is not None:
            there = {name: (now / name).stat().st_ino for name in os.listdir(now)}
        for name in sorted(safe.keys() | there.keys()):
            kept = there if self.choice.random() < keep else safe
            inner = kept.get(name)
            if inner is None:
                continue
            current = now / name if now is not None and there.get(name) == inner else None
            if inner in self.names or (current is not None and current.is_dir()):
                self._make(inner, current, target / name, keep)
            else:
                (target / name).write_bytes(self._mixed(inner, current, keep))

    def _mixed(self, number: int, current: Path | None, keep: float) -> bytes:
        """Sectors of a file, each as it was when it was synced or as it is, or zeros."""
        safe = self.safe.get(number, b"")
        if current is None:
            return safe
        now = current.read_bytes()
        size = len(now) if self.choice.random() < max(keep, 0.5 if keep else 0) else len(safe)
        mixed = bytearray()
        for start in range(0, size, SECTOR):
            part = now if self.choice.random() < keep else safe
            mixed += part[start : min(start + SECTOR, size)].ljust(min(SECTOR, size - start), b"\0")
        return bytes(mixed)

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)

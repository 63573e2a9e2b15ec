"""Write files and folders whole: a crash leaves the old one or the new one."""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self


def write_atomic(path: Path, content: str | bytes) -> None:
    """Create or replace the file `path`, which is on disk when this returns. Text becomes UTF-8."""
    with file_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write inside the `with` block; at its end it is on disk as `path`, whole.

    It then replaces any file there. An exception leaves everything as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync(path.parent)


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Make a folder to fill inside the `with` block. At its end it is on disk as `path`, whole.

    `path` must not exist, or be an empty folder. An exception leaves nothing.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for inner in temporary.rglob("*"):
            if inner.is_file():  # safetensors writes files for their owner alone
                os.chmod(inner, 0o666 & ~_umask())
            sync(inner)
        os.chmod(temporary, 0o777 & ~_umask())
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing. They are on disk when this returns."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Closing(ABC):
    """A context manager that calls `close()` at the end of its `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Release the files that are held; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

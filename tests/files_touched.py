"""Watches which files Python opens, makes and removes, and what it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_watching: list[list[tuple[str, bool]]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        mode, flags = arguments[1], arguments[2] or 0
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) or any(c in str(mode) for c in "wax+")
        _watching[-1].append((os.path.abspath(os.fsdecode(arguments[0])), writes))
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"):
        _watching[-1].append((os.path.abspath(os.fsdecode(arguments[0])), True))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
        _watching[-1].append((event, True))


sys.addaudithook(_note)  # for good: hooks cannot be taken off


@contextmanager
def files_touched() -> Iterator[list[tuple[str, bool]]]:
    """Collects (path, whether for writing) of all that Python opens, makes, removes or starts."""
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()

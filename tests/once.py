"""What the processes of a test session share: made by the first that needs it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Have `make` fill a folder, once in all processes of the session.

    Others wait for the first one. Where it fails, the next one tries.

    Args:
        factory: pytest's fixture `tmp_path_factory`.
        name: the folder's, unlike all others'.
        make: fills the folder that it is given, which may have what a failure left.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each process has a folder of its own in there
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "made").touch()
    return folder

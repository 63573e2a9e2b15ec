"""Rows of results: JSON Lines, each on the disk before the next is measured."""

from __future__ import annotations

import datetime
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]

STAMP = ("part", "variant", "backend", "card", "torch", "date", "dry")
"""What every row begins with: what made it, where and when."""


def append(path: Path, row: Row) -> None:
    """Append a row to a file, and have it on the disk."""
    with path.open("a") as file:
        # a process that was killed may have left half a line
        cut = path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        file.write("\n" * cut + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """Read the rows of a file. What is no whole row, such as half a line, is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.keys() >= {*STAMP, "what"}:
            rows.append(row)
    return rows


def record(what: str, **values: Any) -> None:
    """Write one row of the part that this process runs, and print it.

    The suite names the file, the part and the variant in the environment.

    Args:
        what: names the line, e.g. "bfloat16, nearest, 1 term".
        values: numbers and words, by name with the unit at the end.
    """
    import torch

    from . import device

    row = {
        "part": os.environ["FEDSPZO_GPU_PART"],
        "variant": os.environ["FEDSPZO_GPU_VARIANT"],
        "backend": device.serving(),
        "card": device.card(),
        "torch": torch.__version__,
        "date": now(),
        "dry": device.DRY,
        "what": what,
        **values,
    }
    append(Path(os.environ["FEDSPZO_GPU_ROWS"]), row)
    print(what, values, flush=True)


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """Measure something: where it raises, record that, and go on with the next."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        record(what, failed=f"{type(error).__name__}: {error}"[:2000])


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

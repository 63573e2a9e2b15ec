"""The table and the plot of the runs there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(folder: Path, seeds: Sequence[int], tuning: Sequence[int]) -> None:
    """Write FOLDER.md and FOLDER.png."""

"""Callbacks: they follow a run round by round, and show or keep its metrics somewhere.

`[output] report_to` names those that are built in; `run` takes callbacks of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import Config
from .installed import check_installed
from .run_folder import TENSORBOARD, remove_events

Row = Mapping[str, Any]


class RunCallback:
    """Follows a run. Derive from it, and override what you need; each method does nothing here."""

    def on_begin(self, config: Config, folder: Path) -> None:
        """Begin. The model was loaded, and nothing was trained yet.

        Args:
            config: the run's configuration.
            folder: the folder of its results.
        """

    def on_round(self, method: str, row: Row) -> None:
        """Take the metrics of a round.

        A run that goes on reports its past rounds again, from round 0.

        Args:
            method: "FedSPZO", or "MeZO" in the comparison run.
            row: the round's line of metrics.jsonl.
        """

    def on_end(self, summary: Row) -> None:
        """Take the summary, the last line of metrics.jsonl. A run that fails has no end."""


class TensorBoard(RunCallback):
    """Writes a run's metrics for TensorBoard, against rounds: a folder of its own a method."""

    def __init__(self) -> None:
        self.folder = Path()
        self._writers: dict[str, Any] = {}

    def on_begin(self, config: Config, folder: Path) -> None:
        """Remove the event files of this run's past rounds, which are reported again."""
        remove_events(folder)
        self.folder = folder / TENSORBOARD

    def on_round(self, method: str, row: Row) -> None:
        """Write the numbers of a round."""
        from torch.utils.tensorboard import SummaryWriter

        if method not in self._writers:
            self._writers[method] = SummaryWriter(str(self.folder / method))
        writer = self._writers[method]
        for name, value in scalars(row).items():
            writer.add_scalar(name, value, row["round"])
        writer.flush()

    def on_end(self, summary: Row) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


def scalars(row: Row) -> dict[str, float]:
    """Return the numbers of a row as TensorBoard groups them, by what stands before a slash."""
    groups = (
        ("held_out", ("loss", "accuracy")),
        ("train", ("train_loss", "skipped")),
        ("cost", ("forwards", "bytes_up", "bytes_down", "seconds")),
    )
    found = {f"{group}/{key}": row.get(key) for group, keys in groups for key in keys}
    found |= {f"lr/block_{n}": rate for n, rate in enumerate(row.get("lr") or (), 1)}
    found["clients/asked"] = len(row["clients"])
    found["clients/rejected"] = len(row["rejected"])
    spent = [epsilon for epsilon in row.get("epsilons") or () if epsilon is not None]
    if spent:
        found["privacy/epsilon"] = max(spent)
    return {name: float(value) for name, value in found.items() if value is not None}


BUILT_IN: dict[str, type[RunCallback]] = {"tensorboard": TensorBoard}
"""The callbacks that [output] report_to can name. A name is also that of the package and extra."""


def named(config: Config) -> list[RunCallback]:
    """Return the callbacks that a config names. Raise InputError if one's package is missing."""
    names = config.output.report_to or ()
    for name in names:
        check_installed(f"{config.path}: [output] report_to = {list(names)}", name, name)
    return [BUILT_IN[name]() for name in names]

"""A run that was stopped, the same run whole, and what the command line says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import write_run

from fedspzo.app.cli import main
from fedspzo.app.run_folder import RunFolder

OUT, DONE = Path("out"), Path("done")
RUN = ["run", "run.toml", "--quiet", "--output", "out"]


def stop_at(round: int) -> Any:
    append = RunFolder.append

    def stopping(self: RunFolder, name: str, row: dict[str, Any]) -> None:
        append(self, name, row)
        if row["round"] == round:
            raise KeyboardInterrupt

    return stopping


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for part in parts:
        assert part in error


def same_end() -> bool:
    """Whether `out` holds what the run left that nobody stopped, but for times."""
    for name in ("metrics.jsonl", "mezo.jsonl"):
        mine, theirs = rows(OUT / name), rows(DONE / name)
        if [{**row, "seconds": 0} for row in mine] != [{**row, "seconds": 0} for row in theirs]:
            return False
    weights = Path("model", "model.safetensors")
    return (OUT / weights).read_bytes() == (DONE / weights).read_bytes()


def write_runs(folder: Path) -> Path:
    """Write a run's input, what it left in `done`, and in `stopped` the same after two rounds."""
    write_run(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        assert main(RUN) == 0
        OUT.rename(DONE)
        patch.setattr("fedspzo.app.run_folder.RunFolder.append", stop_at(2))
        assert main(RUN) == 130
        OUT.rename("stopped")
    return folder


@contextmanager
def stopped_run() -> Iterator[None]:
    """Have the stopped run in `out` of the current folder, and restore the folder afterwards."""
    shutil.copytree("stopped", OUT)
    kept = {name: Path(name).read_text() for name in ("run.toml", "train.jsonl")}
    yield
    shutil.rmtree(OUT)
    for name, text in kept.items():
        Path(name).write_text(text)

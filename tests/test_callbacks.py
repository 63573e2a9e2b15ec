"""Callbacks that follow a run, and TensorBoard, which a config names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import write_run

from fedspzo.app import config, installed
from fedspzo.app.callbacks import RunCallback, scalars
from fedspzo.app.cli import main
from fedspzo.app.data import read_splits
from fedspzo.app.run import run
from fedspzo.app.run_folder import RunFolder

REPORTING = '[output]\nreport_to = ["tensorboard"]'


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_scalars_are_the_numbers_that_a_row_has() -> None:
    row = {"loss": None, "accuracy": 0.5, "skipped": 0, "lr": [0.1, 2.0], "bytes_up": 7}
    row |= {"clients": [0, 3], "rejected": [{"client": 3}], "epsilons": [None, 1.5, 0.5]}
    assert scalars(row) == {
        "held_out/accuracy": 0.5,
        "train/skipped": 0,
        "cost/bytes_up": 7,
        "lr/block_1": 0.1,
        "lr/block_2": 2.0,
        "clients/asked": 2,
        "clients/rejected": 1,
        "privacy/epsilon": 1.5,
    }


class Recorder(RunCallback):
    def __init__(self) -> None:
        self.begun: list[tuple[str, Path]] = []
        self.rows: dict[str, list[Any]] = {}
        self.summary: Any = None

    def on_begin(self, config: config.Config, folder: Path) -> None:
        self.begun.append((config.name, folder))

    def on_round(self, method: str, row: Any) -> None:
        assert self.summary is None
        self.rows.setdefault(method, []).append(row)

    def on_end(self, summary: Any) -> None:
        self.summary = summary


@pytest.mark.slow
def test_a_callback_sees_all_that_the_metrics_have(tmp_path: Path) -> None:
    write_run(tmp_path)
    read = config.load(tmp_path / "run.toml").with_overrides(output=tmp_path / "out")
    splits = read_splits(read.data, read.task, read.federation.seed)
    recorder = Recorder()
    with RunFolder(read.output_dir) as folder:
        run(read, splits, folder, quiet=True, callbacks=[recorder])
    assert recorder.begun == [("run", tmp_path / "out")]
    *rows, summary = lines(tmp_path / "out", "metrics.jsonl")
    assert json.loads(json.dumps(recorder.rows["FedSPZO"])) == rows
    assert json.loads(json.dumps(recorder.rows["MeZO"])) == lines(tmp_path / "out", "mezo.jsonl")
    assert json.loads(json.dumps(recorder.summary)) == summary
    assert set(summary["machine"]) == {"system", "device", "kernels"}


@pytest.mark.slow
def test_tensorboard_reads_a_run_that_was_extended(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_run(tmp_path)
    text = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("[output]", REPORTING))
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "run.toml"), "--output", str(out), "--quiet"]) in (0, 4)
    assert main(["run", "--resume", str(out), "--rounds", "6", "--quiet"]) in (0, 4)
    for method, name in (("FedSPZO", "metrics.jsonl"), ("MeZO", "mezo.jsonl")):
        rows = [row for row in lines(out, name) if "round" in row]
        events = EventAccumulator(str(out / "tensorboard" / method))
        events.Reload()
        for tag, key in (("held_out/loss", "loss"), ("cost/bytes_up", "bytes_up")):
            found = [(event.step, event.value) for event in events.Scalars(tag)]
            wanted = [(row["round"], row[key]) for row in rows if row[key] is not None]
            assert found == [(step, pytest.approx(value)) for step, value in wanted]
    # a run that replaces it has no old events
    (tmp_path / "run.toml").write_text(text)
    again = ["run", str(tmp_path / "run.toml"), "--output", str(out), "--overwrite", "--quiet"]
    assert main(again) in (0, 4)
    assert list(out.glob("tensorboard/*/*")) == []


def test_without_tensorboard_the_error_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path)
    text = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("[output]", REPORTING))

    def without(name: str) -> Any:
        return None if name == "tensorboard" else importlib.util.find_spec(name)

    monkeypatch.setattr(installed, "find_spec", without)
    assert main(["run", str(tmp_path / "run.toml"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        "[output] report_to = ['tensorboard'] needs tensorboard, which is not installed;"
        " pip install 'fedspzo[tensorboard]'"
    )
    assert not (tmp_path / "out").exists()


def test_other_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    text = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("[output]", '[output]\nreport_to = ["wandb"]'))
    assert main(["run", str(tmp_path / "run.toml")]) == 2
    assert "report_to is ['wandb']; give a list, each entry one of 'tensorboard'" in (
        capsys.readouterr().err
    )

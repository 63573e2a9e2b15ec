"""A stopped run goes on by the command line, to the end of one that nobody stopped."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from resume_toys import OUT, RUN, refused, rows, same_end, stop_at

from fedspzo.app.cli import main
from fedspzo.app.run_folder import RunFolder
from fedspzo.federated.exchange import InProcess
from fedspzo.journal.reader import JournalReader
from fedspzo.journal.writer import write_whole

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "command", [["run", "run.toml", "--output", "out"], ["run", "--resume", "out"]]
)
def test_a_run_goes_on(here: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with (OUT / "journal.fspz").open("ab") as file:
        file.write(b"half of it")
    assert main(command) == 0
    error = capsys.readouterr().err
    assert "going on with FedSPZO after round 2 of 4, a torn record of 10 bytes cut off" in error
    assert "FedSPZO  round 1/4" not in error  # MeZO, which follows, may have four too
    assert same_end()
    # and once it is finished
    assert main(["run", "--resume", "out"]) == 0
    assert "the run in 'out' is finished" in capsys.readouterr().err
    refused(RUN, capsys, "holds a run; add --overwrite")


def test_a_run_that_finds_its_rates_goes_on_and_repeats(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path("run.toml").read_text().replace("lr = 1e-3\n", 'lr = "auto"\n', 1)
    config = config.replace("[mezo]\nlr = 1e-3\n", "")
    # on texts like those it learns from, or its loss would rise, and the run would end badly
    Path("alike.csv").write_text("text,label\na fine film film,good\na dull film film,bad\n")
    Path("auto.toml").write_text(config.replace("test.csv", "alike.csv"))
    run = ["run", "auto.toml", "--quiet", "--output"]
    assert main([*run, "whole"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("fedspzo.app.run_folder.RunFolder.append", stop_at(2))
        assert main([*run, "halted"]) == 130
    assert main(["run", "--resume", "halted", "--quiet"]) == 0
    Path("whole", "config.toml").rename("again.toml")
    assert main(["run", "again.toml", "--quiet", "--output", "repeated"]) == 0
    mine = [{**row, "seconds": 0} for row in rows(Path("whole", "metrics.jsonl"))]
    halted, repeated = (
        [{**row, "seconds": 0} for row in rows(Path(folder, "metrics.jsonl"))]
        for folder in ("halted", "repeated")
    )
    assert halted == mine
    # the config that a run leaves has what was measured, which costs nothing any more
    costs = ("forwards", "bytes_up", "bytes_down")
    saved = {name: mine[0][name] - repeated[0][name] for name in costs}
    assert min(saved.values()) > 0
    for row, whole in zip(repeated, mine, strict=True):
        for name in costs:
            assert row[name] + saved[name] == pytest.approx(whole[name])
        assert {**row, **{name: whole[name] for name in costs}} == whole
    assert "lr" not in mine[0]
    assert all(len(row["lr"]) == 2 for row in mine[1:-1])
    assert main(["verify", "whole/model", "halted/journal.fspz"]) == 0


def test_clients_that_fail_are_named_and_the_run_goes_on_later(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = InProcess.exchange
    failing: list[int] = []

    def unreachable(self: InProcess, client: int, plan: bytes, weights: Any) -> Any:
        if client in failing:
            raise TimeoutError(f"no answer from {client}")
        return reached(self, client, plan, weights)

    monkeypatch.setattr(InProcess, "exchange", unreachable)
    failing[:] = [0, 1, 2]
    assert main(RUN) == 3
    error = capsys.readouterr().err
    assert "error: round 2: 0 of 2 clients reported, 1 are needed; " in error
    assert "TimeoutError: no answer from" in error
    assert "all rounds before it are kept" in error
    failing[:] = [0]
    assert main(["run", "--resume", "out", "--quiet"]) == 0
    named = [row["rejected"] for row in rows(OUT / "metrics.jsonl")[:-1] if row["rejected"]]
    assert {fault["client"] for one in named for fault in one} == {0}
    assert named[0][0]["reason"] == "TimeoutError: no answer from 0"
    assert main(["journal", "show", "out/journal.fspz", "--round", "3"]) == 0
    assert "rejected, client 0: TimeoutError: no answer from 0" in capsys.readouterr().out


def test_a_folder_may_move_and_the_metrics_may_be_lost(here: Path) -> None:
    OUT.rename("elsewhere")
    Path("elsewhere/metrics.jsonl").unlink()
    assert main(["run", "--resume", "elsewhere", "--quiet"]) == 0
    Path("elsewhere").rename(OUT)
    assert same_end()


def test_a_run_that_an_older_release_began_goes_on(here: Path) -> None:
    path = OUT / "journal.fspz"
    reader = JournalReader(path)
    run = {**reader.header["run"]}
    for name in ("files", "path"):
        del run[name]
    run["config"] = "".join(
        line for line in run["config"].splitlines(keepends=True) if "max_repeated" not in line
    )
    assert run["config"] != reader.header["run"]["config"]
    entries = [(entry.kind, entry.body) for entry in reader]
    path.unlink()
    write_whole(path, {**reader.header, "run": run}, entries)
    assert main(RUN) == 0
    assert same_end()


@pytest.mark.parametrize("name", ["journal", "metrics", "model"])
def test_a_full_disk_loses_nothing(
    here: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if name == "journal":
            patch.setattr(os, "write", full)
            patch.setattr(RunFolder, "_acquire", lambda self: None)
            remedy = "journal.fspz: cannot be written (No space left on device)"
        elif name == "metrics":
            patch.setattr("fedspzo.app.run_folder.json", SimpleNamespace(dumps=full))
            remedy = "the journal's rounds are safe"
        else:
            patch.setattr("fedspzo.app.run_folder.os.replace", full)
            remedy = "the journal's rounds are safe"
        refused(RUN, capsys, "No space left on device", remedy)
    assert main(RUN) == 0
    assert same_end()

"""Journals on the command line: going on, one process a folder, replay, verify, show."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import write_run

from fedspzo.app import models
from fedspzo.app.cli import main
from fedspzo.app.run_folder import RunFolder
from fedspzo.federated.exchange import InProcess
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.reader import JournalReader
from fedspzo.journal.writer import write_whole

pytestmark = pytest.mark.slow

OUT, DONE = Path("out"), Path("done")
RUN = ["run", "run.toml", "--quiet", "--output", "out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's input, what it left in `done`, and in `stopped` what it had after two rounds."""
    folder = tmp_path_factory.mktemp("runs")
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


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, where the run in `out` was stopped."""
    monkeypatch.chdir(folder)
    shutil.copytree("stopped", OUT)
    kept = {name: Path(name).read_text() for name in ("run.toml", "train.jsonl")}
    yield folder
    shutil.rmtree(OUT)
    for name, text in kept.items():
        Path(name).write_text(text)


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


CHANGES = [
    ("lr = 1e-3\n[mezo]", "lr = 2e-3\n[mezo]", ["[optimizer] lr is 0.002, but 0.001 in the unf"]),
    (
        "rounds = 4",
        "rounds = 5",
        ["[federation] rounds is 5, but 4 in the unfinished run in 'out'"],
    ),
    ("[output]", "[output]\n# only a comment", []),
    ("[output]", "[output]\nreport_to = []", []),  # where it is shown, not what it is
]


@pytest.mark.parametrize(("old", "new", "parts"), CHANGES)
def test_another_config_does_not_go_on(
    here: Path, old: str, new: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("run.toml").read_text()
    assert old in text
    Path("run.toml").write_text(text.replace(old, new))
    before = (OUT / "journal.fspz").read_bytes()
    if not parts:
        assert main(RUN) == 0
        return
    refused(RUN, capsys, *parts, "give that, add --overwrite to start anew")
    assert (OUT / "journal.fspz").read_bytes() == before
    assert main([*RUN, "--overwrite", "--rounds", "1"]) == 0
    assert rows(OUT / "metrics.jsonl")[-1]["rounds"] == 1


def test_other_data_do_not_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("train.jsonl").read_text()
    Path("train.jsonl").write_text(text.replace("dull", "bad"))
    refused(RUN, capsys, "train.jsonl: has changed since the unfinished run in 'out' began")
    refused(["run", "--resume", "out"], capsys, "train.jsonl: has changed")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer.json", '"awful"', '"dreadful"'),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
    ],
)
def test_another_tokenizer_or_config_does_not_go_on(
    here: Path, name: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("net", name)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        for command in (RUN, ["run", "--resume", "out", "--quiet"]):
            refused(command, capsys, f"{name} has changed since the unfinished run in 'out' began")
    finally:
        path.write_text(text)
    assert main(RUN) == 0


def test_a_model_that_changes_while_it_loads_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, path = models.load, Path("net/tokenizer.json")
    text = path.read_text()

    def edited(*arguments: Any) -> Any:
        path.write_text(text + " ")
        return load(*arguments)

    monkeypatch.setattr(models, "load", edited)
    try:
        refused(["run", "run.toml", "--quiet", "--output", "new"], capsys, "tokenizer.json has")
    finally:
        path.write_text(text)
    assert not Path("new").exists()


def test_mezo_starts_from_the_same_weights(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, loads = models.load, []

    def other(*arguments: Any) -> Any:
        model, *more = load(*arguments)
        loads.append(model)
        if len(loads) == 2:
            with torch.no_grad():
                next(model.parameters()).add_(1)
        return model, *more

    monkeypatch.setattr(models, "load", other)
    refused(RUN, capsys, "whose weights have changed since the run began")


def test_data_are_hashed_as_they_were_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("train.jsonl").read_text()
    load = models.load

    def edited(*arguments: Any) -> Any:
        Path("train.jsonl").write_text(text + text)
        return load(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(models, "load", edited)
        patch.setattr("fedspzo.app.run_folder.RunFolder.append", stop_at(1))
        assert main([*RUN, "--overwrite"]) == 130
    refused(RUN, capsys, "train.jsonl: has changed since the unfinished run in 'out' began")
    Path("train.jsonl").write_text(text)
    assert main(RUN) == 0
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


def test_a_run_that_loaded_its_model_in_another_way_does_not_go_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So it is with an older release's classifier, whose head was relabelled."""
    path = OUT / "journal.fspz"
    reader = JournalReader(path)
    model = {**reader.header["model"], "labels": ["bad", "good"]}
    entries = [(entry.kind, entry.body) for entry in reader]
    path.unlink()
    write_whole(path, {**reader.header, "model": model}, entries)
    for command in (RUN, ["run", "--resume", "out", "--quiet"]):
        refused(command, capsys, "loaded the model with {'labels': ['bad', 'good']}", "--overwrite")
    assert main([*RUN, "--overwrite", "--rounds", "1"]) == 0


def test_damage_is_named_and_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = OUT / "journal.fspz"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    for command in (RUN, ["run", "--resume", "out"], ["journal", "show", str(path)]):
        refused(command, capsys, "journal.fspz: record", "is damaged: its body fails its checksum")
    refused(["replay", "net", str(path), "-o", "new"], capsys, "is damaged")
    assert path.read_bytes() == data
    assert not Path("new").exists()


def test_wrong_use_of_resume_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["run"], capsys, "name a CONFIG.toml, or a run's folder after --resume")
    refused(["run", "--resume", "net"], capsys, "'net' holds no journal")
    refused(["run", "--resume", "gone"], capsys, "'gone' holds no journal")
    refused(["run", "run.toml", "--resume", "out"], capsys, "config is given with --resume")
    refused(["run", "--resume", "out", "--seed", "0"], capsys, "seed is given with --resume")


def test_two_processes_do_not_write_one_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(OUT):
        for command in (RUN, [*RUN, "--overwrite"], ["run", "--resume", "out"]):
            refused(command, capsys, f"is being written by process {os.getpid()}; wait")
    assert main(RUN) == 0


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


def test_a_folder_that_cannot_be_written_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Holds for root too, whom no permission stops: /proc takes no new folders from anybody.
    refused([*RUN[:3], "--output", "/proc/run"], capsys, "'/proc/run' cannot be written")
    refused(
        ["replay", "net", "out/journal.fspz", "-o", "/proc/x", "--quiet"],
        capsys,
        "'/proc/x' cannot be",
    )


def test_replay_verify_and_show(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    journal, out = "done/journal.fspz", str(tmp_path / "new")
    done = rows(DONE / "metrics.jsonl")
    assert main(["replay", "net", journal, "-o", out, "--quiet"]) == 0
    names = {path.name for path in (DONE / "model").iterdir()}
    assert {path.name for path in Path(out).iterdir()} == names - {"README.md"}  # the run's card
    for name in names - {"README.md"}:
        assert (Path(out) / name).read_bytes() == (DONE / "model" / name).read_bytes(), name
    capsys.readouterr()
    for model in (out, "done"):
        assert main(["verify", model, journal]) == 0
        assert f"digest {done[-1]['digest']}, that of round 4" in capsys.readouterr().out
    assert main(["verify", out, journal, "--round", "2"]) == 1
    assert f"that of round 4 of {journal}; round 2 has" in capsys.readouterr().err
    assert main(["verify", "net", "done/mezo.fspz", "--round", "0"]) == 0
    refused(["verify", "gone", journal], capsys, "'gone': there is no such folder")
    refused(["replay", "net", journal, "-o", out], capsys, "is there already; name a new folder")
    refused(["replay", out, journal, "-o", "x"], capsys, "the journal starts from", "give the base")
    refused(["replay", "./no", journal, "-o", "x"], capsys, "'./no' is no folder and no hub id")
    refused(["replay", "net", "run.toml", "-o", "x"], capsys, "run.toml: starts with")

    assert main(["journal", "show", journal]) == 0
    text = capsys.readouterr().out
    for row in done[:-1]:
        assert row["digest"] in text
    assert "seed 0, 3 clients, 4 rounds of 2 steps" in text
    assert main(["journal", "show", journal, "--round", "3"]) == 0
    text = capsys.readouterr().out
    assert done[3]["digest"] in text
    for client in done[3]["clients"]:
        assert f"client {client}: " in text
    refused(["journal", "show", journal, "--round", "9"], capsys, "has no round 9")


def test_a_journal_without_a_run_is_not_gone_on_with(tmp_path: Path) -> None:
    from federated_toys import toy

    from fedspzo.journal.reader import JournalError
    from fedspzo.journal.steps import StepJournal

    path = tmp_path / "journal.fspz"
    StepJournal(path, toy(), source="toy").close()
    with pytest.raises(JournalError, match="is no federated run's journal"):
        RunJournal(path, source="toy")

"""A stopped run does not go on with other settings, data or models, nor in two processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_toys import OUT, RUN, refused, rows, same_end, stop_at

from fedspzo.app import models
from fedspzo.app.cli import main
from fedspzo.app.run_folder import RunFolder
from fedspzo.journal.reader import JournalReader
from fedspzo.journal.writer import write_whole

pytestmark = pytest.mark.slow


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


def test_an_extended_run_that_was_stopped_does_not_go_on_by_its_first_command(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(RUN) == 0
    longer = ["run", "--resume", "out", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr("fedspzo.app.run_folder.RunFolder.append", stop_at(6))
        assert main([*longer, "--rounds", "7"]) == 130
    said = "its run has 6 rounds already, [federation] rounds is 4; 'fedspzo run --resume out'"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fedspzo.app.run", None)  # it brings torch
        refused(RUN, capsys, said)
    assert main(longer) == 0
    assert rows(OUT / "metrics.jsonl")[-1]["rounds"] == 7


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


def test_two_processes_do_not_write_one_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(OUT):
        for command in (RUN, [*RUN, "--overwrite"], ["run", "--resume", "out"]):
            refused(command, capsys, f"is being written by process {os.getpid()}; wait")
    assert main(RUN) == 0

"""Replay, verify and show, and what the commands say of journals that they cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
from resume_toys import DONE, OUT, RUN, refused, rows

from fedspzo.app.cli import main
from fedspzo.federated.journal.writer import RunJournal

pytestmark = pytest.mark.slow


def test_replay_verify_and_show(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
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
    refused(["replay", "net", journal, "-o", f"{tmp_path}/caf\udce9"], capsys, "is no text in the")
    (tmp_path / "link").symlink_to(tmp_path)
    refused(["replay", "net", journal, "-o", str(tmp_path / "link")], capsys, "is a link; name a")
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


def test_a_journal_without_a_run_is_not_gone_on_with(tmp_path: Path) -> None:
    from federated_toys import toy

    from fedspzo.journal.reader import JournalError
    from fedspzo.journal.steps import StepJournal

    path = tmp_path / "journal.fspz"
    StepJournal(path, toy(), source="toy").close()
    with pytest.raises(JournalError, match="is no federated run's journal"):
        RunJournal(path, source="toy")

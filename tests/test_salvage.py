"""A damaged journal gives the rounds before the damage, where they are asked for, and says so."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from federated_toys import toy
from journal_toys import federate, save_base

from fedspzo.app import replay
from fedspzo.app.cli import main
from fedspzo.errors import InputError
from fedspzo.federated import RunResult
from fedspzo.federated.journal.compaction import compact
from fedspzo.journal.damage import JournalWarning
from fedspzo.journal.reader import ROUND, Entry, JournalError, JournalReader
from fedspzo.journal.salvage import salvage, salvage_in_place

WORDS = r"record \d at byte \d+ is damaged: .*; the {} rounds before it hold"


@pytest.fixture
def made(tmp_path: Path) -> tuple[str, Path, RunResult]:
    """A base, a journal of five rounds, and what the run gave."""
    base = save_base(tmp_path, toy())
    return base, tmp_path / "journal.fspz", federate(tmp_path / "journal.fspz", toy())


def rounds(path: Path) -> list[Entry]:
    return [entry for entry in JournalReader(path) if entry.kind == ROUND]


def flip(path: Path, offset: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [0, 4, 7, 9, 30, -1], ids=str)
@pytest.mark.parametrize("number", [1, 4, 5])
def test_every_round_before_the_damage_is_given(
    made: tuple[str, Path, RunResult], tmp_path: Path, number: int, inside: int
) -> None:
    base, path, result = made
    hit = rounds(path)[number - 1]
    before = path.read_bytes()[: hit.offset]
    data = flip(path, hit.offset + inside % hit.size)
    digests = [row.digest for row in result.rounds]
    words = WORDS.format(number - 1)
    for round in range(number):
        with pytest.warns(JournalWarning, match=words):
            assert replay.replay(base, path, round=round).digest == digests[round]
    with pytest.raises(InputError, match=f"rounds 0 to {number - 1}, as {words}"):
        replay.replay(base, path, round=number)
    for command in (
        lambda: replay.replay(base, path),  # without a number the last is meant: it is lost
        lambda: replay.verify(base, path),
        lambda: compact(path, tmp_path / "new.fspz"),
        lambda: federate(path, toy()),
    ):
        with pytest.raises(JournalError, match=f"{words}.*; restore .*'fedspzo journal salvage'"):
            command()
    with pytest.warns(JournalWarning, match=words):
        assert replay.replay(base, path, salvage=True).digest == digests[number - 1]
    with pytest.warns(JournalWarning, match=words):
        assert replay.verify(base, path, round=0).matches
    with pytest.warns(JournalWarning, match=words):
        assert replay.verify(base, path, salvage=True).round == number - 1
    found = salvage(path, tmp_path / "whole.fspz")
    assert (found.rounds, found.size, found.torn) == (number - 1, len(before), 0)
    assert found.damage is not None
    assert (found.damage.number, found.damage.offset) == (hit.number, hit.offset)
    assert (tmp_path / "whole.fspz").read_bytes() == before
    assert path.read_bytes() == data
    again = federate(tmp_path / "whole.fspz", toy())  # a run goes on
    assert [row.digest for row in again.rounds] == digests


def test_the_lost_rounds_are_counted(made: tuple[str, Path, RunResult], tmp_path: Path) -> None:
    _, path, _ = made
    whole, second = path.read_bytes(), rounds(path)[1]
    for inside in range(second.size - 4):
        flip(path, second.offset + inside)
        found = salvage(path, tmp_path / f"{inside}.fspz").damage
        assert found is not None
        assert (found.kept, found.behind) == (1, 3)
        assert "the 1 rounds before it hold, and it and the 3 rounds after it" in str(found)
        path.write_bytes(whole)
    flip(path, second.offset + second.size - 1)  # its checksum, which the next one continues
    found = salvage(path, tmp_path / "end.fspz").damage
    assert found is not None
    assert found.behind == 2


def test_compaction_takes_what_is_whole_where_it_is_told_to(
    made: tuple[str, Path, RunResult], tmp_path: Path
) -> None:
    base, path, result = made
    flip(path, rounds(path)[3].offset + 20)
    with pytest.warns(JournalWarning, match=WORDS.format(3)):
        assert compact(path, tmp_path / "new.fspz", salvage=True).rounds == 3
    again = replay.replay(base, tmp_path / "new.fspz")
    assert (again.round, again.digest) == (3, result.rounds[3].digest)


def test_a_whole_or_torn_journal_is_written_as_it_is(
    made: tuple[str, Path, RunResult], tmp_path: Path
) -> None:
    _, path, _ = made
    whole = path.read_bytes()
    assert salvage_in_place(path) is None
    with path.open("ab") as file:
        file.write(b"half of it")
    assert salvage_in_place(path) is None
    found = salvage(path, tmp_path / "new.fspz")
    assert (found.rounds, found.torn, found.damage) == (5, 10, None)
    assert (tmp_path / "new.fspz").read_bytes() == whole


def test_what_is_no_journal_or_there_already_is_refused(
    made: tuple[str, Path, RunResult], tmp_path: Path
) -> None:
    _, path, _ = made
    with pytest.raises(InputError, match="is there already; name a new file after -o"):
        salvage(path, path)
    with pytest.raises(InputError, match=r"cannot be written \(No such file"):
        salvage(path, tmp_path / "none" / "new.fspz")
    flip(path, 40)  # without the header nothing can be read
    with pytest.raises(JournalError, match=r"record 0 at byte 12 is damaged.*from a copy$"):
        salvage(path, tmp_path / "new.fspz")
    assert not (tmp_path / "new.fspz").exists()


def test_a_damaged_file_is_kept_each_time(
    made: tuple[str, Path, RunResult], tmp_path: Path
) -> None:
    _, path, _ = made
    for number, name in ((4, "journal.fspz.damaged"), (2, "journal.fspz.damaged-2")):
        hit = rounds(path)[number]
        data = flip(path, hit.offset + 20)
        with pytest.warns(JournalWarning, match=WORDS.format(number)):
            assert salvage_in_place(path) == tmp_path / name
        assert (tmp_path / name).read_bytes() == data
        assert path.read_bytes() == data[: hit.offset]


@pytest.mark.slow
def test_the_command_line_salvages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_run import write_run

    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = ["run", "run.toml", "--quiet", "--output", "out"]
    assert main(run) == 0
    shutil.copytree("out", "done")
    path, metrics = Path("out", "journal.fspz"), Path("out", "metrics.jsonl")
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:3]))  # as if it had been stopped
    flip(path, rounds(path)[2].offset + 20)
    flip(Path("out", "mezo.fspz"), rounds(Path("out", "mezo.fspz"))[0].offset + 20)
    capsys.readouterr()
    words = "out/journal.fspz: record 3 at byte"
    for arguments in (run, ["run", "--resume", "out", "--quiet"]):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert main([*run, "--salvage"]) == 2
    assert "salvage is given without --resume" in capsys.readouterr().err
    assert main(["replay", "net", str(path), "-o", "two", "--round", "2", "--quiet"]) == 0
    assert words in capsys.readouterr().err  # even with --quiet
    assert main(["replay", "net", str(path), "-o", "last", "--salvage", "--quiet"]) == 0
    assert main(["verify", "two", str(path), "--salvage"]) == 0
    assert "that of round 2" in capsys.readouterr().out
    assert main(["journal", "salvage", str(path), "-o", "new.fspz"]) == 0
    text = capsys.readouterr().out
    assert "new.fspz holds 2 rounds" in text
    assert words in text
    with warnings.catch_warnings(record=True):
        assert main(["run", "--resume", "out", "--salvage", "--quiet"]) == 0
    error = capsys.readouterr().err
    assert words in error
    assert "the damaged file is kept as out/journal.fspz.damaged\n" in error
    assert "the damaged file is kept as out/mezo.fspz.damaged\n" in error
    for name in ("metrics.jsonl", "mezo.jsonl"):
        mine, theirs = (
            [json.loads(line) for line in Path(folder, name).read_text().splitlines()]
            for folder in ("out", "done")
        )
        assert [{**row, "seconds": 0} for row in mine] == [{**row, "seconds": 0} for row in theirs]

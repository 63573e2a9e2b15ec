"""What compaction refuses, and what it leaves behind when it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from compacted_toys import rounds_of, two_rounds_a_record
from federated_toys import toy
from journal_toys import federate, save_base

from fedspzo.app import replay
from fedspzo.errors import InputError
from fedspzo.federated.journal.compaction import compact
from fedspzo.federated.journal.merged_rounds import MergedRounds
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.journal.reader import ROUNDS, JournalError, JournalReader
from fedspzo.journal.steps import StepJournal
from fedspzo.journal.writer import write_whole


@pytest.mark.parametrize("first", [-1, 2**32, 1.5, True, "2", None])
def test_a_header_with_another_first_round_is_refused(tmp_path: Path, first: object) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    federate(path, toy())
    header = JournalReader(path).header
    run = {**header["run"], "first": first}
    write_whole(new, {**header, "run": run}, [])
    with pytest.raises(JournalError, match="header: first of the journal's run is"):
        DecodedJournal(new)


def test_rounds_that_do_not_follow_each_other_are_found(tmp_path: Path) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    federate(path, toy())
    whole = [MergedRounds((c.update,), c.digest) for c in rounds_of(path)]
    records = [(ROUNDS, whole[place].encode()) for place in (0, 2)]
    write_whole(new, JournalReader(path).header, records)
    with pytest.raises(JournalError, match=r"record 2 .*is damaged: it is of round 2, not 1"):
        list(DecodedJournal(new).records())


def test_damage_is_found_and_a_torn_end_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new, other = (tmp_path / n for n in ("journal.fspz", "new.fspz", "other.fspz"))
    base = save_base(tmp_path, toy())
    result = federate(path, toy())
    two_rounds_a_record(monkeypatch, path)
    with path.open("ab") as file:
        file.write(b"half of it")
    done = compact(path, new)
    assert done.bytes_before == path.stat().st_size - len(b"half of it")
    data = new.read_bytes()
    start = JournalReader(new).start
    for position in range(start, len(data), 5):
        other.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with pytest.raises(JournalError, match=r"record \d at byte \d+ is damaged"):
            replay.replay(base, other)
        with pytest.raises(JournalError, match=r"record \d at byte \d+ is damaged"):
            compact(other, tmp_path / "none.fspz")
    other.write_bytes(data[:-1])  # torn: the last record is not there
    again = replay.replay(base, other)
    assert (again.round, again.digest) == (4, result.rounds[4].digest)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["base.safetensors", "journal.fspz", "new.fspz", "other.fspz"]
    )


def test_a_compacted_run_does_not_go_on(tmp_path: Path) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    federate(path, toy())
    compact(path, new)
    data = new.read_bytes()
    with pytest.raises(JournalError, match=r"new.fspz: was compacted, .*; resume the journal it"):
        federate(new, toy())
    assert new.read_bytes() == data


def test_a_journal_without_rounds_or_with_steps_is_refused(tmp_path: Path) -> None:
    new = tmp_path / "new.fspz"
    StepJournal(tmp_path / "steps.fspz", toy(), source="toy").close()
    with pytest.raises(InputError, match=r"steps.fspz: keeps steps .*ship it as it is"):
        compact(tmp_path / "steps.fspz", new)
    federate(tmp_path / "journal.fspz", toy())
    write_whole(tmp_path / "begun.fspz", JournalReader(tmp_path / "journal.fspz").header)
    with pytest.raises(InputError, match=r"begun.fspz: has no round yet"):
        compact(tmp_path / "begun.fspz", new)
    for output in (tmp_path / "journal.fspz", tmp_path):
        with pytest.raises(InputError, match="is there already; name a new file"):
            compact(tmp_path / "journal.fspz", output)
    assert not new.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.fspz"
    federate(path, toy())

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(InputError, match=r"cannot be written .No space left on device.; name"):
            compact(path, tmp_path / "new.fspz")
    with pytest.raises(InputError, match=r"cannot be written .No such file or directory.; name"):
        compact(path, tmp_path / "none" / "new.fspz")
    with pytest.raises(InputError, match=r"cannot be written .File name too long"):
        compact(path, tmp_path / ("n" * 300))
    assert list(tmp_path.iterdir()) == [path]

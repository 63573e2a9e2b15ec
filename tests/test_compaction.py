"""A journal without its reports: the same bits from fewer bytes, and nobody's report in them."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_replay import federate, save_base
from tiny_run import write_run

from fedspzo.app import replay
from fedspzo.app.cli import main
from fedspzo.app.show import lines
from fedspzo.errors import InputError
from fedspzo.federated import FederationConfig, OptimizerConfig, run
from fedspzo.federated.journal import merged_rounds as merging
from fedspzo.federated.journal import round_codec
from fedspzo.federated.journal.compaction import compact
from fedspzo.federated.journal.merged_rounds import MergedRounds, merge, update_bytes
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars, Update
from fedspzo.federated.rejections import Rejection
from fedspzo.journal.reader import OVERHEAD, ROUND, ROUNDS, JournalError, JournalReader
from fedspzo.journal.records import digest
from fedspzo.journal.steps import StepJournal
from fedspzo.journal.writer import JournalWriter, write_whole

DIGEST = "00112233445566778899aabbccddeeff"
REASON = "its loss is 7.25 and it is Zacharias's telephone"


@pytest.fixture(
    params=[
        (dtype, seeds) for dtype in (torch.float32, torch.bfloat16) for seeds in ("own", "shared")
    ],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, list[str]]:
    """A base, a journal, and the digest of each round."""
    dtype, seeds = request.param
    base, path = save_base(tmp_path, toy(dtype)), tmp_path / "journal.fspz"
    result = federate(path, toy(dtype), seeds="shared" if seeds == "shared" else "per-client")
    return base, path, [done.digest for done in result.rounds]


def contents(path: Path) -> list[MergedRounds]:
    found = [content for _, content in DecodedJournal(path).entries()]
    assert all(isinstance(content, MergedRounds) for content in found)
    return found  # type: ignore[return-value]


def two_rounds_a_record(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    _, first, second, *_ = [c for _, c in DecodedJournal(path).entries() if isinstance(c, Round)]
    size = MergedRounds((first.update, second.update), DIGEST).size
    monkeypatch.setattr(merging, "BODY_BYTES", size)


def test_every_round_is_rebuilt_to_the_bit(made: tuple[str, Path, list[str]]) -> None:
    base, path, digests = made
    new = path.with_name("new.fspz")
    before = path.read_bytes()
    done = compact(path, new)
    assert path.read_bytes() == before
    assert (done.rounds, len(contents(new))) == (5, 1)
    assert done.terms == contents(new)[0].terms
    assert (done.bytes_before, done.bytes_after) == (len(before), new.stat().st_size)
    for number, expected in enumerate(digests):
        again = replay.replay(base, new, round=number)
        assert (again.digest, again.checked) == (expected, number in (0, 5))
    assert list(DecodedJournal(new).digests()) == [digests[0], *[None] * 4, digests[5]]


def test_several_records_and_their_digests(
    made: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, path, digests = made
    two_rounds_a_record(monkeypatch, path)
    new, again = path.with_name("new.fspz"), path.with_name("again.fspz")
    compact(path, new)
    assert [len(part.updates) for part in contents(new)] == [2, 2, 1]
    known = [digests[0], None, digests[2], None, digests[4], digests[5]]
    assert list(DecodedJournal(new).digests()) == known
    for number, expected in enumerate(digests):
        assert replay.replay(base, new, round=number).digest == expected
    compact(new, again)
    assert again.read_bytes() == new.read_bytes()
    monkeypatch.undo()  # a release that holds more in one record: only whole records are merged
    compact(new, path.with_name("wider.fspz"))
    compact(path, path.with_name("direct.fspz"))
    assert path.with_name("wider.fspz").read_bytes() == path.with_name("direct.fspz").read_bytes()


def test_a_wrong_digest_is_found_at_the_end_of_a_record(
    made: tuple[str, Path, list[str]],
) -> None:
    base, path, digests = made
    new = path.with_name("new.fspz")
    reader = JournalReader(path)
    (part,) = merge(MergedRounds((c.update,), DIGEST) for c in rounds_of(path))
    write_whole(new, reader.header, [(ROUNDS, part.encode())])
    with pytest.raises(InputError, match=f"round 5 replays to .*{digests[5]}, not {DIGEST}"):
        replay.replay(base, new)
    assert replay.replay(base, new, round=4).digest == digests[4]


def rounds_of(path: Path) -> Iterator[Round]:
    for _, content in DecodedJournal(path).entries():
        if isinstance(content, Round):
            yield content


def settings_of(log: DecodedJournal) -> tuple[FederationConfig, OptimizerConfig]:
    assert log.settings is not None
    return log.settings


def test_no_report_is_in_it(tmp_path: Path) -> None:
    path, new, third = (tmp_path / name for name in ("journal.fspz", "new.fspz", "third.fspz"))
    federate(path, toy(), participation=1.0, lr=0.037)
    log = DecodedJournal(path)
    whole = list(rounds_of(path))
    private = {"config": "[data]\ntrain = '/home/z/secret.csv'\n", "data": {"train": DIGEST}}
    header = {**log.reader.header, "run": {**log.reader.header["run"], **private}}
    with JournalWriter.create(third, header) as writer:
        for done in whole:
            gone = Rejection(2, REASON)  # it had answered, and what it says is not used
            kept = tuple(report for report in done.reports if report.client != 2)
            entries = tuple(entry for entry in done.update.entries if entry[0] != 2)
            update = replace(done.update, entries=entries)
            changed = replace(done, reports=kept, rejected=(gone,), update=update)
            writer.append(ROUND, round_codec.encode(changed, *settings_of(log)))
    compact(third, new)
    data = new.read_bytes()
    assert REASON.encode() in third.read_bytes()
    assert b"secret.csv" in third.read_bytes()
    for text in (REASON.encode(), b"secret.csv", DIGEST.encode(), b'"config"', b'"data"'):
        assert text not in data
    for done in whole:
        for report in done.reports:
            assert report.gradients.encode_steps() not in data
            assert struct.pack("<f", report.loss) not in data
            assert report.gradients.values[0, 0].tobytes() not in data
    for part in contents(new):
        clients = {client for update in part.updates for client, _ in update.entries}
        assert clients == {0, 1, 3}
    assert DecodedJournal(new).settings == log.settings


def test_with_shared_seeds_no_client_is_named(tmp_path: Path) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    federate(path, toy(), seeds="shared")
    compact(path, new)
    (part,) = contents(new)
    assert {client for update in part.updates for client, _ in update.entries} == {EVERYBODY}


def test_a_round_without_a_step_stays_a_round(tmp_path: Path) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    base = save_base(tmp_path, toy())
    federate(path, toy(), rounds=3)
    log = DecodedJournal(path)
    with JournalWriter.create(path.with_name("idle.fspz"), log.reader.header) as writer:
        nothing = replace(next(rounds_of(path)), update=Update(0, ()), reports=())
        writer.append(ROUND, round_codec.encode(nothing, *settings_of(log)))
    idle = path.with_name("idle.fspz")
    done = compact(idle, new)
    assert (done.rounds, done.terms, done.term_after) == (1, 0, None)
    assert replay.replay(base, new, round=0).digest == log.header.base
    assert list(lines(new))[-1].startswith("1 rounds, 0 terms, ")


# Old terms merged into the weights


@pytest.mark.parametrize("after", [1, 3])
def test_old_terms_are_merged_into_the_weights(
    made: tuple[str, Path, list[str]], after: int
) -> None:
    """The weights of a round and the later rounds are worth the base and all of them."""
    base, path, digests = made
    new, middle = path.with_name("new.fspz"), path.with_name("middle")
    replay.save(replay.replay(base, path, round=after), middle)
    done = compact(path, new, after=after)
    log = DecodedJournal(new)
    assert (log.first, log.header.base) == (after, digests[after])
    assert (done.rounds, replay.rounds(log)) == (5 - after, 5)
    assert done.terms < done.terms_before == compact(path, path.with_name("all.fspz")).terms
    for number in range(after, 6):
        assert replay.replay(str(middle), new, round=number).digest == digests[number]
    assert replay.verify(str(middle), new, round=after).matches
    late = replay.verify(str(middle), new)
    assert (late.matches, late.expected, late.found) == (False, digests[5], after)
    shown = list(lines(new))
    assert any(f"after {after} rounds, digest {digests[after]}" in line for line in shown)
    assert shown[-1].startswith(f"{5 - after} rounds, {done.terms} terms, ")
    with pytest.raises(InputError, match=f"source: 'toy', after {after} rounds"):
        replay.replay(base, new)
    with pytest.raises(InputError, match=f"round is {after - 1}; the journal has .* {after} to 5"):
        replay.replay(str(middle), new, round=after - 1)


def test_what_was_merged_is_merged_further(
    made: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, digests = made
    two_rounds_a_record(monkeypatch, path)
    first, second, direct, same = (path.with_name(f"{n}.fspz") for n in "abcd")
    compact(path, first, after=2)
    compact(first, second, after=4)
    compact(path, direct, after=4)
    assert second.read_bytes() == direct.read_bytes()
    assert list(DecodedJournal(second).digests()) == [digests[4], digests[5]]
    compact(second, same)
    assert same.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (-1, "after is -1; the journal has rounds 0 to 5"),
        (6, "after is 6; the journal has rounds 0 to 5"),
        (5, "has no round after 5 yet"),
        (2.0, "after is 2.0; give a whole number of rounds"),
    ],
)
def test_a_round_to_start_from_that_is_not_there(
    made: tuple[str, Path, list[str]], after: Any, message: str
) -> None:
    _, path, _ = made
    new = path.with_name("new.fspz")
    with pytest.raises(InputError, match=message):
        compact(path, new, after=after)
    assert not new.exists()


def test_a_round_without_a_digest_is_nothing_to_start_from(
    made: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, _ = made
    two_rounds_a_record(monkeypatch, path)
    new, none = path.with_name("new.fspz"), path.with_name("none.fspz")
    compact(path, new)
    with pytest.raises(InputError, match="has no digest of round 3 to start from; give 2, or"):
        compact(new, none, after=3)
    assert not none.exists()


@pytest.mark.parametrize("first", [-1, 2**32, 1.5, True, "2", None])
def test_a_header_with_another_first_round_is_refused(tmp_path: Path, first: object) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    federate(path, toy())
    header = JournalReader(path).header
    run = {**header["run"], "first": first}
    write_whole(new, {**header, "run": run}, [])
    with pytest.raises(JournalError, match="header: first of the journal's run is"):
        DecodedJournal(new)


# What a term costs


@pytest.mark.parametrize(
    ("clients", "steps", "p", "seeds", "most"),
    [
        (8, 1, 1, "per-client", 9.6),
        (1, 1, 1, "per-client", 12.4),
        (8, 1, 1, "shared", 12.4),
        (3, 9, (1, 2), "per-client", 4.6),
    ],
)
def test_a_term_costs_at_most_sixteen_bytes(
    tmp_path: Path, clients: int, steps: int, p: Any, seeds: str, most: float
) -> None:
    rounds, path, new = 30, tmp_path / "journal.fspz", tmp_path / "new.fspz"
    mezo = isinstance(p, int)
    with RunJournal(path, source="toy") as journal:
        run(
            toy(single=mezo),
            ToyTask(),
            toy_data([4] * clients),
            FederationConfig(clients=clients, rounds=rounds, local_steps=steps, seeds=seeds),
            OptimizerConfig(
                lr=0.01, estimator="mezo" if mezo else "anchored", perturbations=p, sides="two"
            ),
            journal=journal,
        )
    done = compact(path, new)
    directions = p if mezo else sum(p)
    # docs/journal.md: a round, a client, a term, and what a record has beside its rounds
    k = 1 if seeds == "shared" else clients
    round_bytes = 2 + k * (4 + (steps + 7) // 8 + 4 * steps * directions)
    assert done.terms == rounds * k * steps * directions
    assert done.bytes_after - done.header_after == OVERHEAD + 24 + rounds * round_bytes
    assert done.term_after is not None
    assert done.term_after < most < 16
    assert done.term_before is not None
    assert done.term_before > done.term_after
    # docs/journal.md, of the live one: every client took all steps at the same cost, and its bytes
    # down and up take one to three bytes each
    least = OVERHEAD + 16 + 4 + 2 + 1 + 4 + clients * (1 + 4 + 4 * steps * directions)
    live = (done.bytes_before - done.header_before) / rounds
    assert least <= live <= least + 4


def test_one_term_a_round_costs_at_most_sixteen_bytes_from_the_eighth_round_on() -> None:
    one = Scalars(1, (0,), np.ones((1, 1), np.float32))
    for rounds in (8, 100, 20_000):
        parts = (MergedRounds((Update(n, ((0, one),)),), DIGEST) for n in range(rounds))
        size = sum(OVERHEAD + len(part.encode()) for part in merge(parts))
        assert size <= 16 * rounds
    assert size < 11.1 * rounds


# Records


@st.composite
def updates(draw: Any, local_steps: int, directions: int) -> list[Update]:
    first = draw(st.sampled_from([0, 1, 2**32 - 5]))
    made = []
    for number in range(first, first + draw(st.integers(1, 5))):
        entries = []
        for client in sorted(draw(st.sets(st.sampled_from([0, 7, EVERYBODY]), max_size=3))):
            steps = tuple(sorted(draw(st.sets(st.integers(0, local_steps - 1), max_size=3))))
            values = np.arange(len(steps) * directions, dtype=np.float32)
            entries.append((client, Scalars(local_steps, steps, values.reshape(-1, directions))))
        made.append(Update(number, tuple(entries)))
    return made


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([(1, 1), (8, 2), (9, 3)]), st.integers(30, 200))
def test_records_hold_what_was_put_in(data: Any, shape: tuple[int, int], limit: int) -> None:
    rounds = data.draw(updates(*shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "BODY_BYTES", limit)
        parts = list(merge(MergedRounds((u,), DIGEST) for u in rounds))
        assert [update for part in parts for update in part.updates] == rounds
        for part in parts:
            body = part.encode()
            assert len(body) == part.size == 24 + sum(map(update_bytes, part.updates))
            assert len(body) <= limit or len(part.updates) == 1
            assert MergedRounds.decode(body, *shape) == part
        assert list(merge(parts)) == parts
        for one, two in itertools.pairwise(parts):
            assert one.size + update_bytes(two.updates[0]) > limit


def body(first: int, count: int, rest: bytes) -> bytes:
    return struct.pack("<II16s", first, count, bytes(16)) + rest


IDLE = bytes(2)
HOSTILE = [
    (body(0, 0, b""), "give consecutive"),
    (body(0, 2**32 - 1, b""), "body ends at byte 24"),
    (body(0, 1, IDLE * 2), "2 bytes after its last field"),
    (body(2**32 - 1, 2, IDLE * 2), "round is 4294967296"),
    (body(0, 1, b"\xff\xff"), "body ends at byte 26"),
    (body(0, 1, struct.pack("<HIBf", 1, 0, 2, 1.0)), "mask of steps names one beyond"),
    (body(0, 1, struct.pack("<HIBf", 1, 0, 1, np.inf)), "must be finite"),
    (body(0, 1, struct.pack("<HIBfIBf", 2, 1, 1, 1.0, 0, 1, 1.0)), "once, ascending"),
    (body(0, 40_000, IDLE * 40_000), "40000 rounds are 80024 bytes; at most 65536"),
    (b"", "body ends at byte 0"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE, ids=[m for _, m in HOSTILE])
def test_a_body_that_is_wrong_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MergedRounds.decode(content, 1, 1)


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


# What is refused


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


# The command line


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "run.toml", "--quiet", "--output", "out"]) == 0
    capsys.readouterr()
    mezo = sum(
        isinstance(done, Round) for _, done in DecodedJournal(Path("out/mezo.fspz")).entries()
    )
    for name, rounds in (("journal", 4), ("mezo", mezo)):  # MeZO's: what 4 of ours cost
        assert main(["journal", "compact", f"out/{name}.fspz", "-o", f"{name}.fspz"]) == 0
        assert f"{name}.fspz holds {rounds} rounds, " in capsys.readouterr().out
    (part,) = contents(Path("journal.fspz"))

    assert main(["replay", "net", "journal.fspz", "-o", "new"]) == 0
    assert capsys.readouterr().out == (f"new holds the weights of round 4, digest {part.digest}\n")
    assert main(["replay", "net", "journal.fspz", "-o", "two", "--round", "2"]) == 0
    assert "which journal.fspz does not have to compare" in capsys.readouterr().out
    known = list(DecodedJournal(Path("out/journal.fspz")).digests())
    assert digest(load_file("two/model.safetensors").items()) == known[2]
    assert main(["verify", "new", "journal.fspz"]) == 0
    assert main(["verify", "two", "journal.fspz"]) == 1
    assert ", no digest of journal.fspz; round 4 has " in capsys.readouterr().err
    assert main(["verify", "two", "journal.fspz", "--round", "2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "journal.fspz: has no digest of round 2 to compare with; name a round that" in error

    assert main(["journal", "show", "journal.fspz"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not kept") == 3
    assert shown.count(part.digest) == 1
    assert f"4 rounds, {part.terms} terms, " in shown
    assert main(["journal", "show", "journal.fspz", "--round", "2"]) == 0
    shown = capsys.readouterr().out
    assert "compacted: the record holds rounds 1 to 4, without reports" in shown
    assert "digest afterwards not kept" in shown
    assert "added, client" in shown
    assert main(["journal", "show", "journal.fspz", "--round", "5"]) == 2

    shutil.copy("journal.fspz", "out/journal.fspz")
    Path("out/metrics.jsonl").unlink()
    capsys.readouterr()
    for command in (["run", "--resume", "out"], ["run", "run.toml", "--output", "out"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "journal.fspz: was compacted, so its run cannot go on; resume the" in error


def test_the_account_of_a_private_run_is_not_made_up(tmp_path: Path) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    federate(path, toy())
    header = JournalReader(path).header
    private = {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    header["run"]["privacy"] = private
    write_whole(new, header, [(e.kind, e.body) for e in JournalReader(path)])
    compact(new, tmp_path / "short.fspz")
    log = DecodedJournal(tmp_path / "short.fspz")
    assert log.reader.header["run"]["privacy"] == private
    assert set(log.reader.header["run"]) == {"federation", "optimizer", "privacy"}
    shown = list(lines(tmp_path / "short.fspz"))
    assert any(line.startswith("privacy  clip 1") for line in shown)
    assert shown[-1].startswith("epsilon is not computed: there is no report")


def test_evaluations_are_left_out(tmp_path: Path) -> None:
    path, new = tmp_path / "journal.fspz", tmp_path / "new.fspz"
    federate(path, toy())
    *live, end = (content for _, content in DecodedJournal(path).entries())
    assert isinstance(end, EvaluationResult)
    assert any(done.evaluation for done in live if isinstance(done, Round))
    compact(path, new)
    assert contents(new)

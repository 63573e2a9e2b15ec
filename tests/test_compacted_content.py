"""What a compacted journal tells, and that nobody's report is in it."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from compacted_toys import DIGEST, contents, rounds_of
from federated_toys import toy
from journal_toys import federate, save_base
from tiny_run import write_run

from fedspzo.app import replay
from fedspzo.app.cli import main
from fedspzo.app.show import lines
from fedspzo.federated import FederationConfig, OptimizerConfig
from fedspzo.federated.journal import round_codec
from fedspzo.federated.journal.compaction import compact
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.protocol.updates import EVERYBODY, Update
from fedspzo.federated.rejections import Rejection
from fedspzo.journal.reader import ROUND, JournalReader
from fedspzo.journal.writer import JournalWriter, write_whole

REASON = "its loss is 7.25 and it is Zacharias's telephone"


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


@pytest.mark.slow
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
    assert main(["replay", "net", "out/journal.fspz", "-o", "again", "--round", "2"]) == 0
    assert capsys.readouterr().out == f"again holds the weights of round 2, digest {known[2]}\n"
    saved = Path("two/model.safetensors").read_bytes()
    assert saved == Path("again/model.safetensors").read_bytes()
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

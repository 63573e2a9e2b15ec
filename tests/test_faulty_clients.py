"""Clients that fail, lie, or come late: each is named, and the run goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_links import HARMLESS, LOST, Answer, Faulty, forged, raises
from federated_toys import ToyTask, toy, toy_data
from first_steps_toys import resolve

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import (
    Client,
    FederationConfig,
    OptimizerConfig,
    QuorumError,
    Rejection,
    Report,
    RunResult,
    Server,
    run,
)
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.rejections import REASON_BYTES
from fedspzo.journal.reader import JournalError
from fedspzo.journal.replica import Replica

pytestmark = pytest.mark.slow

SIZES = [5, 9, 16, 30]
OPTIMIZER = OptimizerConfig(lr=(1e-2, 4e-2), perturbations=(1, 4))
FEDERATION = FederationConfig(clients=4, rounds=4, local_steps=2, seed=11)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(
    answer: Answer | None = None,
    federation: FederationConfig = FEDERATION,
    *,
    clients: tuple[int, ...] = (2,),
    rounds: range = range(2, 3),
    blocks: Blocks | None = None,
    **options: Any,
) -> RunResult:
    """A run in which these clients answer otherwise in these rounds."""
    wrong = None if answer is None else lambda link: Faulty(link, clients, rounds, answer)
    data = toy_data(SIZES)
    return run(blocks or toy(), ToyTask(), data, federation, OPTIMIZER, link=wrong, **options)


def digests(result: RunResult) -> list[str]:
    return [done.digest for done in result.rounds]


def rejected(result: RunResult) -> dict[int, tuple[Rejection, ...]]:
    return {done.round - 1: done.rejected for done in result.rounds if done.rejected}


@pytest.fixture(scope="module", params=["per-client", "shared"])
def clean(request: pytest.FixtureRequest) -> tuple[FederationConfig, RunResult, RunResult]:
    """The settings, a run without faults, and one in which client 2's report got lost once."""
    federation = replace(FEDERATION, seeds=request.param)
    return federation, train(federation=federation), train(LOST["silent"][0], federation)


@pytest.mark.parametrize("fault", LOST)
def test_a_round_goes_on_without_a_client_that_fails(
    fault: str,
    clean: tuple[FederationConfig, RunResult, RunResult],
    caplog: pytest.LogCaptureFixture,
) -> None:
    federation, whole, without = clean
    answer, reason = LOST[fault]
    result = train(answer, federation)
    ((round, (rejection,)),) = rejected(result).items()
    assert (round, rejection.client) == (2, 2)
    assert re.search(reason, rejection.reason)
    assert re.search(f"round 2: client 2: .*{reason}", caplog.text)
    # whatever it sent has left no trace, and the weights of the others count for more
    assert digests(result) == digests(without)
    assert digests(result)[:3] == digests(whole)[:3]
    assert digests(result)[3] != digests(whole)[3]


@pytest.mark.parametrize("fault", HARMLESS)
def test_what_comes_beside_a_good_report_is_passed_over(
    fault: str, clean: tuple[FederationConfig, RunResult, RunResult]
) -> None:
    federation, whole, _ = clean
    answer, reason = HARMLESS[fault]
    result = train(answer, federation)
    ((round, (rejection,)),) = rejected(result).items()
    assert (round, rejection.client) == (2, 2)
    assert re.search(reason, rejection.reason)
    assert digests(result) == digests(whole)


FLOODS: dict[str, tuple[Answer, str]] = {
    "empty": (lambda report, past: [report.encode(), *[b""] * 3000], "0 bytes, too few"),
    "twice": (lambda report, past: [report.encode()] * 3001, "came twice"),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_of_many_useless_messages_the_first_are_named_and_the_others_counted(
    kind: str,
    clean: tuple[FederationConfig, RunResult, RunResult],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    federation, whole, _ = clean
    answer, reason = FLOODS[kind]
    with RunJournal(tmp_path / "journal.fspz", source="toy") as journal:
        result = train(answer, federation, journal=journal)
    ((_, (*first, last)),) = rejected(result).items()
    assert len(first) == 4
    assert all(re.search(reason, rejection.reason) for rejection in first)
    assert str(last) == "client 2: and 2996 more like these"
    assert caplog.text.count("client 2: ") == 5
    assert digests(result) == digests(whole)
    assert journal.path.stat().st_size < 10_000


def test_messages_beyond_the_bound_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    decode = Report.decode
    monkeypatch.setattr(Report, "decode", lambda data: read.append(data) or decode(data))
    train(lambda report, past: [b""] * 3000, rounds=range(99), clients=(0, 1), blocks=toy())
    assert read.count(b"") <= 4 * FEDERATION.rounds * 2


def test_a_round_that_is_asked_again_counts_what_came_before() -> None:
    federation = replace(FEDERATION, rounds=1, quorum=1.0, retries=2)
    tries = iter(range(3))

    def answer(report: Report, past: list[Report]) -> list[bytes]:
        return [report.encode()] if next(tries) == 2 else [b""] * 100

    result = train(answer, federation, rounds=range(1))
    ((_, (*first, last)),) = rejected(result).items()
    assert [rejection.client for rejection in first] == [2] * 4
    assert str(last) == "client 2: and 196 more like these"


def test_absurd_scalars_are_cut_to_size(
    clean: tuple[FederationConfig, RunResult, RunResult],
) -> None:
    federation, whole, _ = clean
    base, start = toy(), dict(toy().model.named_parameters())
    result = train(lambda report, past: [forged(report, 1e30)], federation, blocks=base)
    assert not rejected(result)  # it is finite: scaled down, not refused
    assert digests(result)[3] != digests(whole)[3]
    moved = [float((p - start[n]).detach().abs().max()) for n, p in base.model.named_parameters()]
    assert max(moved) < 10
    # and within the bound nothing is touched
    assert digests(train(federation=replace(federation, clip=1e9))) == digests(whole)


def a_federation(
    federation: FederationConfig, optimizer: OptimizerConfig = OPTIMIZER
) -> tuple[Server, list[Client]]:
    base = Replica(toy())
    clients = [
        Client(number, base.copy(), examples, ToyTask())
        for number, examples in enumerate(toy_data(SIZES))
    ]
    return Server(base, federation, resolve(optimizer, clients, batch_size=8)), clients


def test_a_report_that_would_overflow_is_refused() -> None:
    server, clients = a_federation(FEDERATION, replace(OPTIMIZER, lr=(1e-2, 1e4)))
    reports = [clients[n].handle(server.plan(n, since=0)) for n in server.sample()]
    last = reports[3].gradients
    huge = replace(last, values=np.full_like(last.values, 3e38))
    accepted, refused = server.sort([*reports[:3], replace(reports[3], gradients=huge)])
    assert [report.client for report in accepted] == [0, 1, 2]
    assert [r.client for r in refused] == [3]
    assert "3e+38 times the learning rate overflow float32" in refused[0].reason


def test_reports_from_outside_the_round_are_refused() -> None:
    server, clients = a_federation(replace(FEDERATION, participation=0.5))
    asked = server.sample()
    reports = [client.handle(server.plan(client.client, since=0)) for client in clients]
    done = server.aggregate([*reports, replace(reports[0], client=77)])
    assert tuple(report.client for report in done.reports) == asked
    assert {r.client for r in done.rejected} == {0, 1, 2, 3, 77} - set(asked)
    assert {r.reason for r in done.rejected} == {"it is not part of round 0"}


# --- quorum ---


def test_too_few_are_asked_again(
    clean: tuple[FederationConfig, RunResult, RunResult], caplog: pytest.LogCaptureFixture
) -> None:
    federation, whole, _ = clean
    asked: list[int] = []

    def once(report: Report, past: list[Report]) -> list[bytes]:
        asked.append(report.client)
        return [] if asked.count(report.client) == 1 else [report.encode()]

    result = train(once, federation, clients=(1, 2, 3))
    assert asked == [1, 2, 3, 1, 2, 3]  # client 0 had reported, and was left alone
    assert digests(result) == digests(whole)
    silent = tuple(Rejection(client, "no report came") for client in (1, 2, 3))
    assert rejected(result) == {2: silent}
    assert "round 2: 1 of 4 clients reported, 2 are needed; client 1: no report" in caplog.text
    assert "asking again" in caplog.text
    assert result.final.bytes_up == whole.final.bytes_up
    assert result.final.bytes_down > whole.final.bytes_down


def test_without_a_quorum_the_run_ends_and_goes_on_later(
    tmp_path: Path, clean: tuple[FederationConfig, RunResult, RunResult]
) -> None:
    federation, whole, _ = clean
    path = tmp_path / "journal.fspz"
    answer = raises(TimeoutError("no answer"))
    message = r"round 2: 1 of 4 clients reported, 2 are needed; .*client 3: TimeoutError: no answer"
    with RunJournal(path, source="toy") as journal, pytest.raises(QuorumError, match=message) as e:
        train(answer, federation, clients=(1, 2, 3), journal=journal)
    assert isinstance(e.value.__cause__, TimeoutError)
    assert [report.client for report in e.value.accepted] == [0]
    assert len(e.value.rejected) == 3 * (1 + federation.retries)
    with RunJournal(path, source="toy") as journal:
        assert [done.digest for done in journal.rounds] == digests(whole)[1:3]
        assert digests(train(federation=federation, journal=journal)) == digests(whole)


def test_without_a_quorum_the_same_journal_goes_on_too(
    tmp_path: Path, clean: tuple[FederationConfig, RunResult, RunResult]
) -> None:
    federation, whole, _ = clean
    path = tmp_path / "folder" / "journal.fspz"
    answer = raises(TimeoutError("no answer"))
    with RunJournal(path, source="toy") as journal:
        with pytest.raises(JournalError, match="No such file or directory"):
            train(federation=federation, journal=journal)
        path.parent.mkdir()
        for _ in range(2):
            with pytest.raises(QuorumError, match="round 2: 1 of 4"):
                train(answer, federation, clients=(1, 2, 3), journal=journal)
        for _ in range(2):
            assert digests(train(federation=federation, journal=journal)) == digests(whole)
    assert [done.digest for done in RunJournal(path, source="toy").rounds] == digests(whole)[1:]


def test_a_server_below_its_quorum_is_as_it_was() -> None:
    server, clients = a_federation(replace(FEDERATION, quorum=1.0))
    reports = [clients[n].handle(server.plan(n, since=0)) for n in server.sample()]
    before, plan = server.replica.digest(), server.plan(0, since=0)
    with pytest.raises(QuorumError, match="3 of 4 clients reported, 4 are needed; client 3: no"):
        server.aggregate(reports[:3])
    assert (server.replica.digest(), server.digest, server.round) == (before, before, 0)
    assert server.plan(0, since=0) == plan
    assert len(server.aggregate(reports).reports) == 4


@pytest.mark.parametrize(
    ("quorum", "needed"), [(1e-9, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1.0, 4)]
)
def test_the_quorum_is_rounded_up(quorum: float, needed: int) -> None:
    assert replace(FEDERATION, quorum=quorum).needed == needed


# --- what is kept of it ---


def test_the_journal_keeps_who_failed_and_a_run_that_stopped_has_the_same_results(
    tmp_path: Path, clean: tuple[FederationConfig, RunResult, RunResult]
) -> None:
    federation = replace(clean[0], participation=0.75, rounds=6, quorum=0.3)
    path = tmp_path / "journal.fspz"
    answer = raises(OSError("unreachable: \u00e9\n" + 900 * "x"))
    options: dict[str, Any] = {"clients": (1, 2), "rounds": range(1, 5)}
    whole = train(answer, federation, **options)
    assert sum(map(len, rejected(whole).values())) > 3

    class Stop(Exception):
        pass

    def stop(done: Any) -> None:
        if done.round == 3:
            raise Stop

    with RunJournal(path, source="toy") as journal, pytest.raises(Stop):
        train(answer, federation, journal=journal, on_round=stop, **options)
    with RunJournal(path, source="toy") as journal:
        resumed = train(answer, federation, journal=journal, **options)
    for mine, theirs in zip(resumed.rounds, whole.rounds, strict=True):
        assert asdict(replace(mine, seconds=0)) == asdict(replace(theirs, seconds=0))
    kept = [content for _, content in DecodedJournal(path).entries()]
    assert [done.rejected for done in kept] == [done.rejected for done in whole.rounds[1:]]


def test_a_reason_is_one_line_of_a_bounded_length() -> None:
    assert Rejection(1, "a\n\tb  c\r").reason == "a b c"
    long = Rejection(1, "\u00e9" * 999).reason
    assert len(long.encode()) == REASON_BYTES
    odd = Rejection(1, "x" + "\u00e9" * 999).reason
    assert len(odd.encode()) == REASON_BYTES - 1
    assert str(Rejection(4, "late")) == "client 4: late"
    assert Rejection(1, "\udc80").reason == "?"

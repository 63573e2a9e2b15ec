"""The steps before the first round: on clients that answer, and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from found_rates_toys import clients_of

from fedspzo.federated import (
    DigestError,
    FederationConfig,
    Link,
    OptimizerConfig,
    Privacy,
    Probe,
    ProbeReport,
    QuorumError,
    run,
)
from fedspzo.federated.exchange import InProcess
from fedspzo.federated.first_steps import begin
from fedspzo.federated.found_rates import probe_clients
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.framing import PROBE, kind_of
from fedspzo.federated.protocol.probes import StepLosses
from fedspzo.journal import Replica
from fedspzo.journal.reader import JournalError, JournalReader
from fedspzo.journal.writer import write_whole
from fedspzo.privacy import Mechanism

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [5, 9, 16, 30]
COSTS = ("forwards", "bytes_down", "bytes_up")
FEDERATION = FederationConfig(clients=4, rounds=2, local_steps=2, batch_size=4, seed=11)
OPEN = {
    "perturbations": OptimizerConfig(lr=1e-2),
    "rates": OptimizerConfig(lr="auto", perturbations=(1, 2)),
    "both": OptimizerConfig(lr="auto"),
    "newton": OptimizerConfig(lr="auto", perturbations=(1, 8)),
    "balanced": OptimizerConfig(lr=1e-2, estimator="balanced"),
    "coupled": OptimizerConfig(lr="auto", estimator="coupled"),
    "mezo": OptimizerConfig(lr="auto", estimator="mezo", perturbations=2),
}


def blocks_for(optimizer: OptimizerConfig) -> Any:
    return toy(single=optimizer.estimator == "mezo")


class Unreachable:
    """Does not reach some clients before the first round, or at all."""

    def __init__(self, link: Link, clients: tuple[int, ...], *, at_all: bool = False) -> None:
        self.link, self.clients, self.at_all = link, clients, at_all
        self.asked: list[int] = []
        self.bytes = [0, 0]

    def exchange(self, client: int, message: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        before = kind_of(message) == PROBE
        if before:
            self.asked.append(client)
        self.bytes[0] += len(message)
        if client in self.clients and (before or self.at_all):
            raise ConnectionRefusedError("nobody there")
        answer = list(self.link.exchange(client, message, weights))
        self.bytes[1] += sum(map(len, answer))
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_a_client_that_is_not_reached_is_passed_over(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    links: list[Unreachable] = []

    def wrap(link: Link) -> Link:
        links.append(Unreachable(link, (0, 3)))
        return links[-1]

    optimizer = OPEN[name]
    result = run(
        blocks_for(optimizer), ToyTask(), toy_data(SIZES), FEDERATION, optimizer, link=wrap
    )
    (link,) = links
    assert link.asked[0] == 0
    assert all(link.asked.count(client) <= 1 for client in link.clients)  # they are left out
    assert "before round 0: client 0: ConnectionRefusedError: nobody there" in caplog.text
    assert not any(done.rejected for done in result.rounds)  # they answer again in the rounds
    assert result.final.loss is not None
    assert (result.final.bytes_down, result.final.bytes_up) == tuple(link.bytes)
    assert 0 < result.rounds[0].bytes_up < result.rounds[0].bytes_down
    assert result.rounds[0].forwards > 0


def test_a_run_whose_perturbations_are_given_saves_the_measurement() -> None:
    data = toy_data(SIZES)
    start = run(toy(), ToyTask(), data, FEDERATION, OPEN["perturbations"]).rounds[0]
    assert min(start.forwards, start.bytes_down, start.bytes_up) > 0
    found = run(toy(), ToyTask(), data, FEDERATION, OPEN["both"])
    given = replace(OPEN["both"], perturbations=found.optimizer.perturbations)
    again = run(toy(), ToyTask(), data, FEDERATION, given)
    for without, whole in zip(again.rounds, found.rounds, strict=True):
        assert without.forwards == pytest.approx(whole.forwards - start.forwards)
        cheaper = {name: getattr(without, name) for name in COSTS}
        assert replace(whole, seconds=0, **cheaper) == replace(without, seconds=0)
        for name in ("bytes_down", "bytes_up"):
            assert getattr(without, name) < getattr(whole, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_a_client_whose_examples_raise_is_passed_over(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Picky(ToyTask):
        def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            if not batch[1].any():
                raise ZeroDivisionError("label 0")
            return super().loss(model, batch)

    first, *others = toy_data(SIZES)
    data = [[(x, 0) for x, _ in first], *([(x, 1 + y % 2) for x, y in own] for own in others)]
    optimizer = OPEN[name]
    result = run(blocks_for(optimizer), Picky(), data, FEDERATION, optimizer)
    assert "before round 0: client 0: ZeroDivisionError: label 0" in caplog.text
    for done in result.rounds[1:]:
        assert [fault.client for fault in done.rejected] == [0]


@pytest.mark.parametrize("name", OPEN)
def test_if_no_client_answers_the_run_ends(name: str) -> None:
    def nobody(link: Link) -> Link:
        return Unreachable(link, (0, 1, 2, 3), at_all=True)

    optimizer = OPEN[name]
    message = "round 0: 0 of 4 clients reported, 1 are needed; client 0: ConnectionRefusedError"
    with pytest.raises(QuorumError, match=message) as caught:
        run(blocks_for(optimizer), ToyTask(), toy_data(SIZES), FEDERATION, optimizer, link=nobody)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_clients_on_models_of_their_own_find_the_same(name: str) -> None:
    """No client has seen what the others did to the weights: what crosses is enough."""
    optimizer = OPEN[name]
    results = [
        run(
            blocks_for(optimizer),
            ToyTask(),
            toy_data(SIZES),
            FEDERATION,
            optimizer,
            replicas=replicas,
        )
        for replicas in (1, 4)
    ]
    shared, alone = [[replace(done, seconds=0) for done in one.rounds] for one in results]
    assert shared == alone


class Spoiling:
    """Changes the reports of one client before the first round, from its second one on."""

    def __init__(self, link: Link, change: Callable[[ProbeReport], list[bytes]]) -> None:
        self.link, self.change = link, change
        self.steps: list[tuple[int, int]] = []

    def exchange(self, client: int, message: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        answer = list(self.link.exchange(client, message, weights))
        if kind_of(message) != PROBE:
            return answer
        self.steps.append((Probe.decode(message).step, client))
        again = [client for _, client in self.steps].count(3) > 1
        return self.change(ProbeReport.decode(answer[0])) if client == 3 and again else answer


def more(report: ProbeReport) -> StepLosses:
    return replace(report.losses, values=np.append(report.losses.values, 0.5))


SPOILED: dict[str, tuple[Callable[[ProbeReport], list[bytes]], str]] = {
    "silent": (lambda report: [], "no report came"),
    "cut short": (lambda report: [report.encode()[:-9]], "send it whole"),
    "other step": (lambda report: [replace(report, step=0).encode()], "its report is of step 0"),
    "other client": (lambda report: [replace(report, client=1).encode()], "it is of client 1"),
    "digest": (
        lambda report: [replace(report, digest="0" * 32).encode()],
        "its weights have another digest than the base",
    ),
    "other kind": (lambda report: [b"FSPZ" + bytes(40)], "version 0"),
    "more losses": (
        lambda report: [replace(report, losses=more(report)).encode()],
        "ValueError: losses has 8, but the step evaluates 7",
    ),
    "no losses": (
        lambda report: [replace(report, losses=StepLosses("float32", np.empty(0))).encode()],
        "ValueError: losses has 0, but the step evaluates more",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOILED)
def test_a_client_that_fails_midway_is_replaced_and_the_steps_before_it_stay(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, reason = SPOILED[fault]
    links: list[Spoiling] = []

    def wrap(link: Link) -> Link:
        links.append(Spoiling(link, change))
        return links[-1]

    federation = replace(FEDERATION, weighting="uniform")
    result = run(toy(), ToyTask(), toy_data(SIZES), federation, OPEN["rates"], link=wrap)
    assert re.search(f"before round 0: client 3: .*{reason}", caplog.text)
    (link,) = links
    _, *others = [place for place, (_, client) in enumerate(link.steps) if client == 3]
    assert len(others) == 1  # it is asked no more
    after = link.steps[others[0] + 1 :]
    assert all(client != 3 for _, client in after)
    drawn = [client for _, client in link.steps[: after[0][0]]] + [client for _, client in after]
    places = probe_clients([1, 1, 1], "uniform")
    assert drawn == places
    assert [step for step, _ in after] == list(range(after[0][0], 8))
    assert not any(done.rejected for done in result.rounds)


ABSURD = {
    "rates": (StepLosses("float64", np.array([0.0, *[1e200] * 6])), "trace_sum is 1"),
    # with these few evaluations the step is complete
    "newton": (StepLosses("float64", np.array([0.0, 0.0, *[1.7e308] * 17])), "trace_sum is inf"),
    "mezo": (StepLosses("float64", np.full(4, 1e200)), "first_loss is 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ABSURD)
def test_losses_that_no_header_could_hold_are_passed_over(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses, reason = ABSURD[name]
    optimizer = replace(OPEN[name], newton=name == "newton")

    def absurd(report: ProbeReport) -> list[bytes]:
        return [replace(report, losses=losses).encode()]

    def go() -> Any:
        with RunJournal(tmp_path / "journal.fspz", source="toy") as journal:
            return run(
                blocks_for(optimizer),
                ToyTask(),
                toy_data(SIZES),
                FEDERATION,
                optimizer,
                journal=journal,
                link=lambda link: Spoiling(link, absurd),
            )

    result = go()
    assert re.search(f"before round 0: client 3: ValueError: auto.*{reason}", caplog.text)
    assert not any(done.rejected for done in result.rounds)
    assert min(result.rounds[1].lr) > 1e-9  # those of the others' steps
    assert go().rounds == result.rounds


def test_clients_tell_their_numbers_of_examples_if_the_server_does_not_know_them() -> None:
    clients = clients_of(SIZES)
    federation = replace(FEDERATION, weighting="examples")
    base = Replica(toy())
    sizes = dict(enumerate(SIZES))
    told, costs = begin(base, federation, OPEN["both"], InProcess(clients), sizes)
    asked, more_costs = begin(base, federation, OPEN["both"], InProcess(clients))
    assert asked.optimizer == told.optimizer
    assert more_costs.forwards == costs.forwards
    assert more_costs.bytes_up > costs.bytes_up


def test_a_private_client_tells_no_losses() -> None:
    pytest.importorskip("dp_accounting")
    (client,) = clients_of([6])
    client.privacy = Mechanism(Privacy(clip=1.0, noise_multiplier=1.0, delta=1e-2), 6)
    base = client.replica
    settings = replace(OPEN["rates"], newton=False, rounding="nearest")
    probe = Probe(client=0, digest=base.digest(), batch_size=4, optimizer=settings)
    with pytest.raises(ValueError, match="asks for losses, and the client's steps are private"):
        client.probe(probe)
    fixed = replace(settings, lr=(1e-2, 2e-2))
    report = client.probe(replace(probe, optimizer=fixed))
    assert len(report.losses.values) == 0
    assert len(report.cost_shares) == 1


def test_a_probe_for_others_or_other_weights_is_refused() -> None:
    client, other = clients_of([5, 6])
    settings = replace(OPEN["rates"], newton=False, rounding="nearest")
    probe = Probe(client=0, digest=client.replica.digest(), batch_size=4, optimizer=settings)
    with pytest.raises(ValueError, match="probe is for client 0, this is client 1"):
        other.probe(probe)
    with pytest.raises(DigestError, match="before the first round, the server's have 0000"):
        client.probe(replace(probe, digest="0" * 32))
    client.replica.round = 2
    with pytest.raises(ValueError, match="client 0 is at round 2; send it before the first round"):
        client.probe(probe)


def test_nobody_is_asked_if_nothing_is_open() -> None:
    settings = OptimizerConfig(lr=1e-2, perturbations=(1, 2))
    result = run(toy(), ToyTask(), toy_data(SIZES), FEDERATION, settings)
    start = result.rounds[0]
    assert (start.forwards, start.bytes_down, start.bytes_up) == (0, 0, 0)


def test_their_computation_is_counted(tmp_path: Path) -> None:
    class Counting(ToyTask):
        calls = 0

        def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            self.calls += 1
            return super().loss(model, batch)

    task, seen = Counting(), []
    with RunJournal(tmp_path / "journal.fspz", source="toy") as journal:
        whole = run(
            toy(single=True),  # one block: each evaluation is a forward pass
            task,
            toy_data(SIZES),
            FEDERATION,
            OPEN["mezo"],
            journal=journal,
            on_round=lambda done: seen.append((task.calls, done.forwards)),
        )
    assert seen[0][0] >= 8 * 3
    assert all(calls == forwards for calls, forwards in seen)
    log = DecodedJournal(tmp_path / "journal.fspz")
    assert log.header.run is not None
    assert log.header.run["spent"]["forwards"] == whole.rounds[0].forwards
    with RunJournal(tmp_path / "journal.fspz", source="toy") as journal:
        again = run(
            toy(single=True), task, toy_data(SIZES), FEDERATION, OPEN["mezo"], journal=journal
        )
    assert again.rounds == whole.rounds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spent", "message"),
    [
        (5, "'spent' that is no JSON object"),
        ({"forwards": -1.0}, "forwards is -1.0; give a finite number"),
        ({"forwards": "1"}, "forwards is '1'"),
        ({"bytes_up": 0.5}, "bytes_up is 0.5; give a whole number"),
        ({"more": 1}, "has the setting 'more'"),
    ],
)
def test_a_header_with_other_costs_is_refused(tmp_path: Path, spent: Any, message: str) -> None:
    path = tmp_path / "journal.fspz"
    with RunJournal(path, source="toy") as journal:
        run(
            toy(),
            ToyTask(),
            toy_data(SIZES),
            replace(FEDERATION, rounds=1),
            OPEN["rates"],
            journal=journal,
        )
    header = json.loads(json.dumps(JournalReader(path).header))
    older = {key: value for key, value in header["run"].items() if key != "spent"}
    write_whole(tmp_path / "older.fspz", {**header, "run": older}, [])
    DecodedJournal(tmp_path / "older.fspz")  # an older release's is read
    header["run"]["spent"] = spent
    write_whole(tmp_path / "other.fspz", header, [])
    with pytest.raises(JournalError, match=message):
        DecodedJournal(tmp_path / "other.fspz")

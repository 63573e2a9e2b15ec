"""The steps before the first round: on clients that answer, and counted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data

from fedspzo.federated import FederationConfig, Link, OptimizerConfig, Plan, QuorumError, run
from fedspzo.federated.client import measures
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.reader import JournalError, JournalReader
from fedspzo.journal.writer import write_whole

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [5, 9, 16, 30]
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

    def exchange(self, client: int, plan: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        before = not Plan.decode(plan).train
        if before:
            self.asked.append(client)
        self.bytes[0] += len(plan)
        if client in self.clients and (before or self.at_all):
            raise ConnectionRefusedError("nobody there")
        answer = list(self.link.exchange(client, plan, weights))
        self.bytes[1] += sum(map(len, answer))
        return answer


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
    assert {0} <= set(link.asked)
    assert "before round 0: client 0: ConnectionRefusedError: nobody there" in caplog.text
    assert not any(done.rejected for done in result.rounds)  # they answer again in the rounds
    assert result.final.loss is not None
    if not measures(optimizer):
        assert len(link.asked) == len(set(link.asked))  # each is asked once
        assert (result.final.bytes_down, result.final.bytes_up) == tuple(link.bytes)
        assert 0 < result.rounds[0].bytes_up < result.rounds[0].bytes_down


def test_a_run_whose_perturbations_are_given_costs_the_same() -> None:
    data = toy_data(SIZES)
    found = run(toy(), ToyTask(), data, FEDERATION, OPEN["both"])
    given = replace(OPEN["both"], perturbations=found.optimizer.perturbations)
    again = run(toy(), ToyTask(), data, FEDERATION, given)
    assert [replace(done, seconds=0) for done in again.rounds] == [
        replace(done, seconds=0) for done in found.rounds
    ]


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

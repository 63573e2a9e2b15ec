"""A federation's learning rates with lr="auto": found, kept sound by reports, and resumed."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated_toys import ToyTask, toy, toy_data

from fedspzo import SPZO
from fedspzo.app.show import lines
from fedspzo.auto_lr.auto_rate import HALVE, STEADY
from fedspzo.auto_lr.block_statistics import LEARN, START
from fedspzo.federated import (
    Client,
    DigestError,
    FederationConfig,
    OptimizerConfig,
    Report,
    RunResult,
    run,
)
from fedspzo.federated.client import resolve
from fedspzo.federated.found_rates import FoundRates, averaged, find, median, probe_clients
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.updates import Scalars
from fedspzo.journal.reader import JournalError, JournalReader
from fedspzo.journal.replica import Replica
from fedspzo.journal.writer import write_whole

AUTO = OptimizerConfig(lr="auto")
FEDERATION = FederationConfig(clients=4, rounds=6, local_steps=2, batch_size=4, seed=11)
DIRECTIONS = (1, 2)


def clients_of(sizes: list[int]) -> list[Client]:
    replica = Replica(toy())
    return [Client(n, replica, own, ToyTask()) for n, own in enumerate(toy_data(sizes))]


def found(steps: int = 1, participation: float = 1.0) -> FoundRates:
    clients = clients_of([5, 5, 5, 5])
    settings = replace(resolve(AUTO, clients, batch_size=4), perturbations=DIRECTIONS)
    federation = replace(FEDERATION, local_steps=steps, participation=participation)
    return find(settings, clients, federation)


def report(client: int, *, size: float = 0.1, loss: float = 1.0, steps: int = 2) -> Report:
    """Of gradients that all have this size."""
    return Report(
        round=0,
        client=client,
        digest="0" * 32,
        examples=5,
        gradients=Scalars(2, tuple(range(steps)), np.full((steps, 3), size, np.float32)),
        loss=loss if steps else None,
        forwards=4.0,
    )


def reports(**changes: float) -> list[Report]:
    return [report(client, **changes) for client in range(4)]


def federate(path: Path, optimizer: OptimizerConfig = AUTO, **changes: Any) -> RunResult:
    after = changes.pop("stop_after", None)

    def stop(result: Any) -> None:
        if result.round == after:
            raise KeyboardInterrupt

    single = optimizer.estimator == "mezo"
    with RunJournal(path, source="toy") as journal:
        return run(
            toy(single=single),
            ToyTask(),
            toy_data([9, 5, 7, 6]),
            replace(FEDERATION, **changes),
            optimizer,
            on_round=stop,
            journal=journal,
        )


# Before the first round


@pytest.mark.parametrize(
    ("changes", "sizes", "expected"),
    [
        ({}, [5, 5, 5, 5], 4.0),
        ({}, [9, 1, 1, 1], 12**2 / 84),
        ({"weighting": "uniform"}, [9, 1, 1, 1], 4.0),
        ({"participation": 0.5}, [5, 5, 5, 5], 2.0),
        ({"participation": 0.25}, [9, 1, 1, 1], 1.0),
        ({"seeds": "shared"}, [5, 5, 5, 5], 1.0),
    ],
)
def test_a_round_averages_over_the_clients_own_directions(
    changes: dict[str, Any], sizes: list[int], expected: float
) -> None:
    assert averaged(sizes, replace(FEDERATION, **changes)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "size", "worth"), [(1, 2.0, 4.0), (2, math.sqrt(2), 4.0), (9, 1.0, 4.0)]
)
def test_they_are_for_the_directions_of_a_whole_round(
    monkeypatch: pytest.MonkeyPatch, steps: int, size: float, worth: float
) -> None:
    clients = clients_of([5, 5, 5, 5])
    settings = resolve(AUTO, clients, batch_size=4)
    many = replace(FEDERATION, local_steps=steps)
    alone = replace(many, seeds="shared")  # one direction for all

    def gained() -> list[float]:
        rates = find(settings, clients, many).lr, find(settings, clients, alone).lr
        return list(np.divide(*rates))

    monkeypatch.setattr(
        "fedspzo.auto_lr.auto_rate.WORTH", 1e9
    )  # the bound on a step's size is lower
    assert gained() == pytest.approx([size, size])
    monkeypatch.setattr("fedspzo.auto_lr.auto_rate.WORTH", 1e-9)  # what noise is worth is lower
    assert gained() == pytest.approx([worth, size])  # it does not bound the last block


def test_they_are_found_on_the_clients_examples_and_the_weights_stay() -> None:
    client, other = clients_of([4, 3])
    before = client.replica.digest()
    with pytest.raises(ValueError, match="lr is 'auto'; give a number, or find it first"):
        replace(AUTO, perturbations=(1, 2)).learning_rates  # noqa: B018
    settings = resolve(AUTO, [client], batch_size=4)
    assert (settings.lr, settings.directions[0]) == ("auto", 1)
    one = replace(FEDERATION, clients=1, local_steps=1)
    made = find(settings, [client], one)
    assert client.replica.digest() == before
    assert find(settings, [client], one).lr == made.lr
    alone, task = toy(), ToyTask()  # the same steps by themselves
    optimizer = SPZO(alone, lr="auto", perturbations=settings.perturbations)
    assert optimizer.auto is not None
    optimizer.auto.central = False  # all blocks in every step, as in a round
    for step in range(LEARN):
        batch = client.batch(0, 0, step, 4)
        optimizer.step(partial(task.loss, alone.model, batch))
    assert [seen.turns for seen in optimizer.auto.blocks] == [LEARN, LEARN]
    assert made.lr == tuple(group["lr"] for group in optimizer.param_groups)
    assert made.lr[0] != made.lr[1] != START
    assert find(settings, [client, other], replace(one, clients=2)).lr != made.lr


def test_a_network_that_is_one_block_has_one() -> None:
    whole = Client(0, Replica(toy(single=True)), toy_data([4])[0], ToyTask())
    settings = resolve(replace(AUTO, estimator="mezo"), [whole], batch_size=2)
    assert len(find(settings, [whole], replace(FEDERATION, clients=1)).lr) == 1


# Round by round


def test_the_rate_of_a_block_that_others_lead_falls() -> None:
    rates = found()
    for _ in range(6):  # what the last steps before the first round had above their mean fades
        rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
    first = rates.lr
    for _ in range(STEADY - LEARN - 6):
        rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
    assert rates.lr == first
    for _ in range(3 * STEADY):
        rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
    assert rates.lr[0] == pytest.approx(first[0] / 2)  # sqrt(STEADY / turns)
    assert rates.lr[1] == first[1]


def test_a_round_whose_noise_adds_up_to_several_steps_counts_for_as_many_turns() -> None:
    def after(steps: int, rounds: int) -> float:
        rates = found(steps)
        for _ in range(rounds):
            rates.learn(reports(size=1e-3), DIRECTIONS, "examples")
        return rates.lr[0]

    assert after(4, 50) == pytest.approx(after(4, 8) * math.sqrt(STEADY / (LEARN + 50)))
    assert after(8, 50) == pytest.approx(after(8, 5) * math.sqrt(STEADY / (LEARN + 2 * 50)))


def test_rounds_of_many_steps_notice_a_rise_in_fewer_rounds() -> None:
    def noticed(steps: int) -> int:
        rates = found(steps)
        for _ in range(10):
            rates.learn(reports(size=1e-3, loss=1.0), DIRECTIONS, "examples")
        for number in range(1, 100):
            before = rates.lr[1]
            rates.learn(reports(size=1e-3, loss=1.5), DIRECTIONS, "examples")
            if rates.lr[1] < before:
                return number
        raise AssertionError("a loss that rises by half is not noticed")

    assert [noticed(steps) for steps in (1, 5, 20)] == [6, 2, 1]


def test_gradients_that_grow_lower_the_rates() -> None:
    calm, wild = found(), found()
    for _ in range(10):
        calm.learn(reports(size=1e-3), DIRECTIONS, "examples")
        wild.learn(reports(size=1e4), DIRECTIONS, "examples")
    assert all(slow < 0.01 * fast for slow, fast in zip(wild.lr, calm.lr, strict=True))


def test_a_loss_that_rises_halves_the_rates_and_is_then_the_one_to_beat() -> None:
    rates = found()
    first, halvings = rates.lr, 0
    for loss in [1.0] * 10 + [9.0] * 30:
        before = rates.lr
        rates.learn(reports(size=1e-3, loss=loss), DIRECTIONS, "examples")
        halvings += rates.lr[1] == HALVE * before[1]
    assert halvings == 1
    assert rates.lr[1] == HALVE * first[1]


def test_one_client_alone_does_not_set_the_rates() -> None:
    honest, deceived = found(), found()
    for _ in range(30):
        usual = reports(size=0.01, loss=0.5)
        honest.learn(usual, DIRECTIONS, "examples")
        deceived.learn([*usual[1:], report(0, size=1e30, loss=1e30)], DIRECTIONS, "examples")
    assert deceived.lr == honest.lr


def test_clients_count_by_their_shares() -> None:
    wild = [replace(report(0, size=1e4), examples=30), *reports(size=1e-3)[1:]]
    by_examples, by_head, expected = found(), found(), found()
    for _ in range(10):
        by_examples.learn(wild, DIRECTIONS, "examples")
        by_head.learn(wild, DIRECTIONS, "uniform")
        expected.learn(wild[:1], DIRECTIONS, "examples")
    assert by_examples.lr == expected.lr
    assert by_examples.lr[0] < 0.01 * by_head.lr[0]


@pytest.mark.parametrize(
    ("values", "shares", "expected"),
    [
        ([3.0], [1.0], 3.0),
        ([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], 2.0),
        ([3.0, 1.0], [1.0, 1.0], 1.0),
        ([9.0, 1.0, 2.0], [0.6, 0.2, 0.2], 9.0),
        ([9.0, 1.0, 2.0], [0.4, 0.2, 0.4], 2.0),
    ],
)
def test_the_median_is_by_shares(values: list[float], shares: list[float], expected: float) -> None:
    assert median(values, shares) == expected


def test_the_steps_before_the_first_round_are_on_the_clients_by_their_shares() -> None:
    assert sorted(probe_clients([5] * 8, "examples")) == list(range(8))
    assert sorted(probe_clients([5] * 4, "examples")) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert probe_clients([5] * 4, "examples") == [0, 1, 3, 0, 2, 3, 1, 2]
    assert sorted(probe_clients([1, 1, 1, 13], "examples")) == [1, *[3] * 7]
    assert sorted(probe_clients([1, 1, 1, 13], "uniform")) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert probe_clients([7], "examples") == [0] * 8
    assert len(set(probe_clients([3] * 10_000, "examples"))) == 8


def test_who_took_no_step_tells_nothing() -> None:
    rates, expected = found(), found()
    rates.learn([], DIRECTIONS, "examples")
    rates.learn([report(0, steps=0)], DIRECTIONS, "examples")
    assert rates.lr == expected.lr
    rates.learn([report(0, size=50.0), report(1, steps=0)], DIRECTIONS, "examples")
    expected.learn([report(0, size=50.0)], DIRECTIONS, "examples")
    assert rates.lr == expected.lr


# In a run


def test_every_step_of_a_round_has_the_rates_that_the_journal_tells(tmp_path: Path) -> None:
    path = tmp_path / "journal.fspz"
    result = federate(path, rounds=40)
    log = DecodedJournal(path)
    assert log.settings is not None
    _, optimizer = log.settings
    rounds = [done for _, done in log.entries() if isinstance(done, Round)]
    assert [done.lr for done in rounds] == [done.lr for done in result.rounds[1:]]
    assert rounds[0].lr == optimizer.lr
    assert rounds[-1].lr[0] < rounds[0].lr[0]
    assert result.rounds[0].lr is None
    for done in rounds:
        for (_, added), sent in zip(done.update.entries, done.reports, strict=True):
            share = sent.examples / sum(report.examples for report in done.reports)
            count = optimizer.directions[0]
            expected = -done.lr[0] * share * sent.gradients.values[:, :count] / count
            np.testing.assert_allclose(added.values[:, :count], expected, rtol=1e-6)
    shown = list(lines(path, len(rounds)))
    assert f"learning rates {' '.join(f'{rate:.4g}' for rate in rounds[-1].lr)}" in shown
    replica = Replica(toy())
    replica.catch_up(record for record, _ in log.records())
    assert replica.digest() == result.final.digest


def test_a_client_does_not_measure_again_when_rates_change(tmp_path: Path) -> None:
    costs = {}
    for name, optimizer in (("auto", AUTO), ("fixed", OptimizerConfig(lr=1e-3))):
        result = federate(tmp_path / name, optimizer, rounds=20)
        passes = [0.0, *(done.forwards for done in result.rounds)]
        costs[name] = np.diff(passes)[1:]
        rates = {done.lr for done in result.rounds[1:]}
        assert len(rates) > 5 if name == "auto" else rates == {None}
    np.testing.assert_allclose(costs["auto"], costs["fixed"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["anchored", "mezo"])
@pytest.mark.parametrize("after", [0, 1, 17])
def test_a_stopped_run_goes_on_with_the_same_rates(
    tmp_path: Path, after: int, estimator: str
) -> None:
    settings = replace(AUTO, estimator=estimator)
    straight = federate(tmp_path / "straight", settings, rounds=30)
    path = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        federate(path, settings, rounds=30, stop_after=after)
    done = federate(path, settings, rounds=30)
    assert [(r.digest, r.lr) for r in done.rounds] == [(r.digest, r.lr) for r in straight.rounds]
    assert done.optimizer == straight.optimizer
    again = federate(path, settings, rounds=30)  # it has ended: nothing is computed
    assert [(r.digest, r.lr) for r in again.rounds] == [(r.digest, r.lr) for r in straight.rounds]


def test_one_journal_object_serves_a_run_that_goes_on(tmp_path: Path) -> None:
    straight = federate(tmp_path / "straight")
    path = tmp_path / "journal.fspz"
    with pytest.raises(KeyboardInterrupt):
        federate(path, stop_after=3)
    args = (ToyTask(), toy_data([9, 5, 7, 6]), FEDERATION, AUTO)

    def stop(result: Any) -> None:
        raise KeyboardInterrupt

    with RunJournal(path, source="toy") as journal:
        with pytest.raises(KeyboardInterrupt):
            run(toy(), *args, journal=journal, on_round=stop)  # before it adds a round
        assert run(toy(), *args, journal=journal).final.digest == straight.final.digest


def test_fixed_and_found_rates_are_different_runs(tmp_path: Path) -> None:
    auto, fixed = tmp_path / "auto", tmp_path / "fixed"
    lr = federate(auto).optimizer.lr
    with pytest.raises(JournalError, match=r"has lr = 'auto', this one \(0.01, "):
        federate(auto, OptimizerConfig(lr=0.01))
    with pytest.raises(JournalError, match="has lr = 'auto', this one"):
        federate(auto, OptimizerConfig(lr=lr))
    federate(fixed, OptimizerConfig(lr=(0.01, 0.02)))
    with pytest.raises(JournalError, match=r"has lr = \(0.01, 0.02\), this one 'auto'"):
        federate(fixed)


def _set(*keys: str | int, to: Any) -> Any:
    def change(auto: Any) -> Any:
        place = auto
        for key in keys[:-1]:
            place = place[key]
        if to is KeyError:
            del place[keys[-1]]
        else:
            place[keys[-1]] = to
        return auto

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda auto: 5, "auto has no 'blocks'"),
        (_set("factor", to=KeyError), "auto has no 'factor'"),
        (_set("factor", to=0), "auto.factor is 0; it has to be a number from 5.42101e-20 to 1"),
        (_set("factor", to=1e308), r"auto.factor is 1e\+308; it has to be"),
        (_set("steps", to=9), "auto.steps is 9; give a whole number from 0 to 8"),
        (_set("averaged", to=0.5), "auto.averaged is 0.5; it has to be a number from 1 to 65535"),
        (_set("added", to=5e-324), "auto.added is 5e-324; give a whole number from 1"),
        (_set("cut", to=1), "auto.cut is 1; it has to be true or false"),
        (_set("first", to="1"), "auto.first is '1'; it has to be a number"),
        (_set("blocks", to=[]), "auto.blocks is not of 2 blocks, as lr is"),
        (_set("blocks", 1, to=None), "auto has no 'turns'"),
        (_set("blocks", 1, "turns", to=1.5), "auto.blocks: turns is 1.5; give a whole"),
        (_set("blocks", 0, "lately", to=True), "auto.blocks: lately is True; it has to be"),
        (_set("blocks", 0, "traces", to=[]), r"auto.blocks: traces is \[\]; it has to be"),
        (_set("blocks", 0, "size", to=10**300), "auto.blocks: size is 10*; it has to be"),
        (_set("blocks", 0, "lately", to=-1), "auto.blocks: lately is -1; it has to be"),
        (_set("blocks", 0, "size", to=KeyError), "auto has no 'size'"),
    ],
)
def test_a_header_that_does_not_tell_them_is_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "journal.fspz"
    federate(path, rounds=1)
    header = copy.deepcopy(JournalReader(path).header)
    header["run"]["auto"] = change(header["run"]["auto"])
    write_whole(tmp_path / "other.fspz", json.loads(json.dumps(header)), [])
    with pytest.raises(JournalError, match=f"header: {message}"):
        DecodedJournal(tmp_path / "other.fspz")


@pytest.mark.parametrize("size", [0, 1e-100, 1e100])
@pytest.mark.parametrize("squares", [0, 1e-100, 1e100])
@pytest.mark.parametrize("traces", [None, -1e100, 0, 1e-100, 1e100])
def test_rates_from_any_header_are_numbers_above_0(
    size: float, squares: float, traces: float | None
) -> None:
    values = found().to_dict()
    for seen in values["blocks"]:
        seen.update(size=size, squares=squares, lately=squares, traces=traces)
    values["factor"] = 2.0**-64
    rates = FoundRates.from_dict(values, FEDERATION, (1.0, 1.0))
    for gradient in (0.0, 1e-38, 1e38):
        rates.learn(reports(size=gradient, loss=3e38), DIRECTIONS, "examples")
        assert replace(AUTO, perturbations=DIRECTIONS, lr=rates.lr).learning_rates == rates.lr


def test_other_rates_than_the_reports_lead_to_are_found_out(tmp_path: Path) -> None:
    path, other = tmp_path / "journal.fspz", tmp_path / "other.fspz"
    with pytest.raises(KeyboardInterrupt):
        federate(path, rounds=30, stop_after=20)
    reader = JournalReader(path)
    header = copy.deepcopy(reader.header)
    header["run"]["auto"]["factor"] = 0.5
    write_whole(other, header, ((entry.kind, entry.body) for entry in reader))
    with pytest.raises(DigestError, match=r"round \d+ has learning rates .* on the release"):
        federate(other, rounds=30)


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_rates_read_from_a_header_back_off_like_those_that_were_found(participation: float) -> None:
    rates = found(participation=participation)
    federation = replace(FEDERATION, participation=participation)
    read = FoundRates.from_dict(rates.to_dict(), federation, rates.lr)
    for loss in [1.0, 0.4] * 10 + [1.5] * 4:  # these vary so much that a rise could be chance
        for either in (rates, read):
            either.learn(reports(size=1e-3, loss=loss), DIRECTIONS, "examples")
        assert read.lr == rates.lr
        assert read._auto.strays == rates._auto.strays
    assert (read.to_dict()["factor"] < 1) == (participation == 1)


def test_that_rounds_are_of_other_clients_each_is_no_divergence() -> None:
    """Their labels differ, and so do their losses: rates would be halved for nothing, for ever."""
    draw, rates = random.Random(0), found(participation=0.5)
    for _ in range(500):
        rates.learn(reports(size=1e-3, loss=draw.choice([0.2, 1.5])), DIRECTIONS, "examples")
    assert rates.to_dict()["factor"] == 1
    for _ in range(60):
        rates.learn(reports(size=1e-3, loss=9.0), DIRECTIONS, "examples")
    assert rates.to_dict()["factor"] < 1


@pytest.mark.parametrize("perturbations", [(0, 2), (1, 0)])
def test_a_block_that_stays_has_no_rate_to_find(
    tmp_path: Path, perturbations: tuple[int, int]
) -> None:
    settings = replace(AUTO, perturbations=perturbations)
    rates = federate(tmp_path / "journal.fspz", settings).final.lr
    assert rates is not None
    assert [rate == START for rate in rates] == [count == 0 for count in perturbations]


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [3, 8])
def test_first_steps_that_were_skipped_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: int
) -> None:
    class Rough(ToyTask):
        """Losses that are not finite in the first steps, and that rise later."""

        def __init__(self, federation: FederationConfig) -> None:
            self.calls, self.federation = 0, federation

        def collate(self, examples: list[Any]) -> Any:
            self.calls += 1
            return super().collate(examples)

        def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            return super().loss(model, batch) * (math.nan if self.calls <= skipped else 1.0)

    def go(path: Path, stop_after: int | None) -> list[Any]:
        seen: list[Any] = []

        def look(result: Any) -> None:
            seen.append((result.digest, result.lr))
            if result.round == stop_after:
                raise KeyboardInterrupt

        task = Rough(FEDERATION)
        if path.exists():
            task.calls = skipped + 1
        with RunJournal(path, source="toy") as journal:
            run(
                toy(),
                task,
                toy_data([9, 5, 7, 6]),
                replace(FEDERATION, rounds=20),
                replace(AUTO, perturbations=(1, 2)),
                journal=journal,
                on_round=look,
            )
        return seen

    straight = go(tmp_path / "straight", None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped", 2)
    header = JournalReader(tmp_path / "stopped").header
    assert header["run"]["auto"]["steps"] == LEARN - skipped
    assert go(tmp_path / "stopped", None) == straight


def test_a_robust_rule_counts_every_client_alike() -> None:
    for rule, expected in (("mean", "examples"), ("median", "uniform"), ("krum", "uniform")):
        federation = replace(FEDERATION, seeds="shared", aggregation=rule)
        assert federation.counting == expected


def test_rates_are_not_halved_without_end() -> None:
    rates = found()
    for turn in range(1500):
        loss = 50.0 if turn // 9 % 2 else 1.0
        rates.learn(reports(size=1e-3, loss=loss), DIRECTIONS, "examples")
    assert 0 < rates.lr[1] < 1e-16
    assert rates.to_dict()["factor"] >= 2.0**-64


def test_steps_without_a_loss_do_not_look_like_the_best_ones() -> None:
    rates, expected = found(), found()
    for _ in range(20):
        for other in (rates, expected):
            other.learn(reports(size=1e-3, loss=1.0), DIRECTIONS, "examples")
        without = [replace(one, loss=None) for one in reports(size=1e-3)]
        rates.learn(without, DIRECTIONS, "examples")
    assert rates.lr[1] == expected.lr[1]
    deceived, warned = found(), found()
    for loss in [1.0] * 10 + [9.0] * 30:
        usual = reports(size=1e-3, loss=loss)
        warned.learn(usual, DIRECTIONS, "examples")
        deceived.learn([replace(usual[0], loss=None), *usual[1:]], DIRECTIONS, "examples")
    assert deceived.lr == warned.lr


@pytest.mark.slow
def test_low_precision_goes_on_with_the_rates_it_found(tmp_path: Path) -> None:
    def go(path: Path, stop_after: int | None) -> list[Any]:
        seen: list[Any] = []

        def look(result: Any) -> None:
            seen.append((result.digest, result.lr))
            if result.round == stop_after:
                raise KeyboardInterrupt

        with RunJournal(path, source="toy") as journal:
            data, federation = toy_data([9, 5, 7, 6]), replace(FEDERATION, rounds=20)
            blocks = toy(torch.bfloat16)
            run(blocks, ToyTask(), data, federation, AUTO, journal=journal, on_round=look)
        return seen

    straight = go(tmp_path / "straight", None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped", 15)
    assert go(tmp_path / "stopped", None) == straight
    assert len({lr for _, lr in straight}) > 5

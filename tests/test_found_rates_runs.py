"""Runs of a federation with lr="auto": what their journals hold, and how they go on."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from found_rates_toys import (
    AUTO,
    DIRECTIONS,
    FEDERATION,
    federate,
    found,
    reports,
)

from fedspzo.app.show import lines
from fedspzo.federated import (
    DigestError,
    FederationConfig,
    OptimizerConfig,
    run,
)
from fedspzo.federated.found_rates import FoundRates
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.reader import JournalError, JournalReader
from fedspzo.journal.replica import Replica
from fedspzo.journal.writer import write_whole

pytestmark = pytest.mark.slow


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
        (
            _set("effective_clients", to=0.5),
            "auto.effective_clients is 0.5; it has to be a number",
        ),
        (
            _set("effective_clients", to=5.0),
            "auto.effective_clients is 5.0; it has to be a number",
        ),
        (_set("first_loss", to="1"), "auto.first_loss is '1'; it has to be a number"),
        (_set("blocks", to=[]), "auto.blocks is not of 2 blocks, as lr is"),
        (_set("blocks", 1, to=None), "auto has no 'turns'"),
        (_set("blocks", 1, "turns", to=1.5), "auto.blocks: turns is 1.5; give a whole"),
        (
            _set("blocks", 0, "smoothed_square", to=True),
            "auto.blocks: smoothed_square is True; it has to be",
        ),
        (_set("blocks", 0, "trace_sum", to=[]), r"auto.blocks: trace_sum is \[\]; it has to be"),
        (
            _set("blocks", 0, "weight_rms", to=10**300),
            "auto.blocks: weight_rms is 10*; it has to be",
        ),
        (
            _set("blocks", 0, "smoothed_square", to=-1),
            "auto.blocks: smoothed_square is -1; it has to be",
        ),
        (_set("blocks", 0, "weight_rms", to=KeyError), "auto has no 'weight_rms'"),
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
@pytest.mark.parametrize("square", [0, 1e-100, 1e100])
@pytest.mark.parametrize("trace", [None, -1e100, 0, 1e-100, 1e100])
def test_rates_from_any_header_are_numbers_above_0(
    size: float, square: float, trace: float | None
) -> None:
    values = found().to_dict()
    for seen in values["blocks"]:
        seen.update(weight_rms=size, square_sum=square, smoothed_square=square, trace_sum=trace)
    values["factor"] = 2.0**-64
    rates = FoundRates.from_dict(values, FEDERATION, DIRECTIONS)
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
    federation = replace(FEDERATION, local_steps=1, participation=participation)
    read = FoundRates.from_dict(rates.to_dict(), federation, DIRECTIONS)
    for loss in [1.0, 0.4] * 10 + [1.5] * 4:  # these vary so much that a rise could be chance
        for either in (rates, read):
            either.learn(reports(size=1e-3, loss=loss), DIRECTIONS, "examples")
        assert read.lr == rates.lr
        assert read.losses == rates.losses
    assert (read.to_dict()["factor"] < 1) == (participation == 1)


@pytest.mark.parametrize("perturbations", [(0, 2), (1, 0)])
def test_a_block_that_stays_has_no_rate_to_find(
    tmp_path: Path, perturbations: tuple[int, int]
) -> None:
    settings = replace(AUTO, perturbations=perturbations)
    rates = federate(tmp_path / "journal.fspz", settings).final.lr
    assert rates is not None
    assert [rate == 1e-4 for rate in rates] == [count == 0 for count in perturbations]


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
    assert header["run"]["auto"]["steps"] == 8 - skipped
    assert go(tmp_path / "stopped", None) == straight


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

"""A rule that is not ours: a run trains, resumes, replays and is compacted with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federated_toys import ToyTask, toy, toy_data

from fedspzo.errors import InputError
from fedspzo.federated import (
    AggregationRule,
    FederationConfig,
    OptimizerConfig,
    RoundResult,
    RunJournal,
    RunResult,
    register_rule,
    run,
)
from fedspzo.federated.aggregation import RULES, Array, Mask
from fedspzo.federated.journal.compaction import compact
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.journal.reader import JournalError
from fedspzo.journal.replica import Replica

FEDERATION = FederationConfig(clients=5, rounds=6, local_steps=2, seeds="shared", seed=4)
OPTIMIZER = OptimizerConfig(lr=1e-2, perturbations=(1, 4))
DATA = toy_data([6, 9, 5, 12, 30])


class GeometricMedian(AggregationRule):
    """The point with the least sum of distances to the clients', by Weiszfeld's iteration."""

    name = "geometric-median"

    def combine(
        self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
    ) -> tuple[Array, Mask]:
        assert list(weights) == [1 / len(values)] * len(values)  # `weighted` is False
        point = np.median(values, axis=0)
        for _ in range(20):
            distances = np.sqrt(((values - point) ** 2).sum(axis=(1, 2))) + 1e-12
            point = np.tensordot(1 / distances, values, axes=1) / (1 / distances).sum()
        return point, taken.any(axis=0)


OWN = replace(FEDERATION, aggregation=GeometricMedian())


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def registered() -> Iterator[str]:
    """The name of the rule, registered for as long as the test runs."""
    register_rule(GeometricMedian())
    yield GeometricMedian.name
    del RULES[GeometricMedian.name]


def train(
    federation: FederationConfig = OWN, path: Path | None = None, stop_after: int | None = None
) -> RunResult:
    def look(result: RoundResult) -> None:
        if result.round == stop_after:
            raise KeyboardInterrupt

    if path is None:
        return run(toy(), ToyTask(), DATA, federation, OPTIMIZER, on_round=look)
    with RunJournal(path, source="toy") as journal:
        blocks, task = toy(), ToyTask()
        return run(blocks, task, DATA, federation, OPTIMIZER, journal=journal, on_round=look)


def seen(result: RunResult) -> list[RoundResult]:
    return [replace(done, seconds=0.0) for done in result.rounds]


@pytest.mark.slow
def test_a_run_moves_by_what_the_rule_returns() -> None:
    ours = train().rounds
    others = [train(replace(FEDERATION, aggregation=name)).rounds for name in RULES]
    assert ours[0].digest == others[0][0].digest
    assert all(ours[-1].digest != rounds[-1].digest for rounds in others)

    class Twice(GeometricMedian):
        name = "twice"

        def combine(self, values: Array, *rest: object) -> tuple[Array, Mask]:
            point, taken = super().combine(values, *rest)
            return 2 * point, taken

    (once,), (twice,) = (
        train(replace(OWN, rounds=1, aggregation=rule)).records
        for rule in (GeometricMedian(), Twice())
    )
    for terms, doubled in zip(once.terms, twice.terms, strict=True):
        np.testing.assert_array_equal(2 * terms.coeffs, doubled.coeffs)


def test_a_run_that_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(path=tmp_path / "stopped", stop_after=3)
    assert seen(train(path=tmp_path / "stopped")) == seen(train())


def test_a_run_does_not_go_on_with_another_rule(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(path=tmp_path / "stopped", stop_after=3)
    message = "its run has aggregation = 'geometric-median', this one 'median'"
    with pytest.raises(JournalError, match=message):
        train(replace(FEDERATION, aggregation="median"), tmp_path / "stopped")


def test_the_journal_is_read_where_the_rule_is_not_known(tmp_path: Path) -> None:
    result = train(path=tmp_path / "journal")
    compact(tmp_path / "journal", tmp_path / "compacted")
    for name in ("journal", "compacted"):
        log = DecodedJournal(tmp_path / name)
        assert log.settings is not None
        assert log.settings[0].rule.name == GeometricMedian.name
        replica = Replica(toy())
        replica.catch_up(record for record, _ in log.records())
        assert replica.digest() == result.final.digest


def test_a_journals_rule_without_code_cannot_go_on(tmp_path: Path) -> None:
    train(path=tmp_path / "journal")
    log = DecodedJournal(tmp_path / "journal")
    assert log.settings is not None
    with pytest.raises(ValueError, match=r"'geometric-median', of which only the name .*register"):
        train(log.settings[0])


def test_a_registered_rule_has_its_name_in_the_settings(registered: str) -> None:
    named = replace(FEDERATION, aggregation=registered)
    assert seen(train(named)) == seen(train())


def test_a_run_begun_by_name_goes_on_with_the_rule_itself(registered: str, tmp_path: Path) -> None:
    named = replace(FEDERATION, aggregation=registered)
    with pytest.raises(KeyboardInterrupt):
        train(named, tmp_path / "stopped", stop_after=2)
    assert seen(train(path=tmp_path / "stopped")) == seen(train())


def test_a_rule_that_weights_clients_gets_their_shares() -> None:
    class Largest(AggregationRule):
        name = "largest"
        weighted = True

        def combine(
            self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
        ) -> tuple[Array, Mask]:
            largest = int(np.argmax(weights))
            assert weights[largest] == 30 / 62
            return values[largest], taken[largest]

    one = replace(FEDERATION, rounds=1, aggregation=Largest())
    assert one.counting == "examples"
    assert train(one).final.digest != train(replace(OWN, rounds=1)).final.digest


class Wrong(GeometricMedian):
    """Returns an answer that is no scalars."""

    name = "wrong"

    def __init__(self, point: Array, taken: Mask) -> None:
        self.answer = point, taken

    def combine(self, *arguments: object) -> tuple[Array, Mask]:
        return self.answer


@pytest.mark.parametrize(
    ("point", "taken", "message"),
    [
        (np.zeros((2, 4)), np.ones(2, bool), r"scalars \(2, 4\) .* return \(2, 5\)"),
        (np.zeros((2, 5)), np.ones(3, bool), r"steps \(3,\), bool; it has to return .* \(2,\)"),
        (np.zeros((2, 5)), np.ones(2), r"steps \(2,\), float64"),
        (np.full((2, 5), np.nan), np.ones(2, bool), "a scalar that is not finite"),
    ],
)
def test_a_rule_that_returns_no_scalars_is_named(point: Array, taken: Mask, message: str) -> None:
    with pytest.raises(ValueError, match=f"aggregation rule 'wrong' returned .*{message}"):
        train(replace(OWN, aggregation=Wrong(point, taken)))


def test_a_rule_that_forgets_to_return_is_named() -> None:
    class Forgets(GeometricMedian):
        name = "forgets"

        def combine(self, *arguments: object) -> tuple[Array, Mask]:  # type: ignore[empty-body]
            pass

    with pytest.raises(ValueError, match=r"rule 'forgets' returned NoneType; .* a pair"):
        train(replace(OWN, aggregation=Forgets()))


def test_a_rule_needs_shared_seeds_unless_it_says_otherwise() -> None:
    with pytest.raises(ValueError, match=r"'geometric-median', .* set seeds = 'shared'"):
        replace(OWN, seeds="per-client")


def test_what_is_no_rule_is_named() -> None:
    class Median(GeometricMedian):
        name = "median"

    class Nameless(AggregationRule):
        combine = GeometricMedian.combine

    for rule, message in (
        (object(), "which has no 'name'; derive it from AggregationRule"),
        (Nameless(), "which has no 'name'"),
        (Median(), "named 'median', which is the name of Median; give it another name"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(FEDERATION, aggregation=rule)
        with pytest.raises(ValueError, match=message):
            register_rule(rule)


def test_a_config_file_names_its_rule_by_a_text(tmp_path: Path) -> None:
    from fedspzo.app.toml import build

    table = {"clients": 2, "rounds": 1, "aggregation": 3}
    with pytest.raises(InputError, match="aggregation is 3; give a text in quotes"):
        build(FederationConfig, tmp_path, "federation", table)


def test_the_settings_of_a_robust_rule_load_without_numpy() -> None:
    code = (
        "import sys, fedspzo.federated.settings as s;"
        "s.FederationConfig(clients=2, rounds=1, seeds='shared', aggregation='krum');"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

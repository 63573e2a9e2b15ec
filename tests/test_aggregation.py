"""Robust rules against straightforward code, and what liars can do to a run under each."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from faulty_links import Answer, Faulty, scaled
from federated_toys import ToyTask, toy, toy_data

from fedspzo.federated import FederationConfig, OptimizerConfig, Report, run
from fedspzo.federated.aggregation import RULES
from fedspzo.federated.clipping import clip

NAMES = list(RULES)
"""All rules, the one first that liars can move: `mean`."""
LIARS = (1, 4, 8)
WEIGHTS = [0.1, 0.2, 0.05, 0.15, 0.1, 0.1, 0.3]


pytestmark = pytest.mark.usefixtures("one_thread")


def some(clients: int = 7, steps: int = 3, directions: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((clients, steps, directions))


def everyone(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape[:2], dtype=bool)


def aggregated(rule: str, values: np.ndarray, byzantine: float = 0.3) -> np.ndarray:
    weights = WEIGHTS if len(values) == 7 else [1 / len(values)] * len(values)
    return RULES[rule].combine(values, everyone(values), weights, byzantine)[0]


def test_rules_of_single_scalars_are_those_of_the_papers() -> None:
    values = some()
    expected = {rule: np.zeros((3, 5)) for rule in ("mean", "trimmed-mean", "median")}
    for step, direction in itertools.product(range(3), range(5)):
        column = sorted(values[:, step, direction])
        expected["median"][step, direction] = column[3]
        expected["trimmed-mean"][step, direction] = column[3]  # ceil(0.3 * 7) = 3 cut at each end
        for weight, value in zip(WEIGHTS, values[:, step, direction], strict=True):
            expected["mean"][step, direction] += weight * value
    for rule, result in expected.items():
        np.testing.assert_allclose(aggregated(rule, values), result, rtol=1e-15)
    twice = aggregated("trimmed-mean", values, 0.2)  # 2 cut at each end
    np.testing.assert_allclose(twice, np.sort(values, axis=0)[2:5].mean(axis=0), rtol=1e-14)
    even = some(clients=4)
    np.testing.assert_allclose(
        aggregated("median", even), np.sort(even, axis=0)[1:3].mean(axis=0), rtol=1e-14
    )


@pytest.mark.parametrize(("clients", "byzantine", "liars"), [(7, 0.2, 2), (10, 0.3, 3), (7, 0, 0)])
def test_krum_takes_the_client_nearest_to_others(
    clients: int, byzantine: float, liars: int
) -> None:
    for seed in range(20):
        values = some(clients, seed=seed)
        flat = [list(v.ravel()) for v in values]
        scores = []
        for mine in flat:
            others = (
                sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True))
                for theirs in flat
                if theirs is not mine
            )
            scores.append(sum(sorted(others)[: clients - liars - 2]))
        expected = values[scores.index(min(scores))]
        np.testing.assert_array_equal(aggregated("krum", values, byzantine), expected)


@pytest.mark.parametrize("rule", NAMES)
def test_few_clients_are_no_error(rule: str) -> None:
    for clients in (1, 2, 3):
        values = some(clients)
        result = aggregated(rule, values, 0.49)
        assert (result >= values.min(axis=0) - 1e-15).all()
        assert (result <= values.max(axis=0) + 1e-15).all()
    np.testing.assert_array_equal(aggregated(rule, some(1)), some(1)[0])


@pytest.mark.parametrize("rule", NAMES[1:])
@pytest.mark.parametrize("value", [1e30, -3e38])
def test_a_minority_cannot_move_a_robust_rule_beyond_the_honest(rule: str, value: float) -> None:
    values = some(10)
    values[[1, 4, 8]] = value
    honest = np.delete(values, [1, 4, 8], axis=0)
    result = aggregated(rule, values)
    assert (result >= honest.min(axis=0)).all()
    assert (result <= honest.max(axis=0)).all()
    assert np.abs(aggregated("mean", values)).min() > 1e28


def test_skipped_steps_count_as_zeros_and_krum_keeps_its_clients_own() -> None:
    values = some(5, steps=2)
    taken = everyone(values)
    taken[:, 1] = taken[2, 0] = False
    values[~taken] = 0
    mean, steps = RULES["mean"].combine(values, taken, [0.2] * 5, 0.3)
    assert steps.tolist() == [True, False]
    np.testing.assert_allclose(mean[0], values[:, 0].sum(axis=0) / 5)
    values[[0, 1, 3]] = 0  # nearest to each other, and to client 2, who skipped
    _, steps = RULES["krum"].combine(values, taken, [0.2] * 5, 0.2)
    assert steps.tolist() == [True, False]


def test_clipping_scales_a_client_to_the_usual_size_block_by_block() -> None:
    values = np.ones((4, 2, 3))
    values[1] *= 2
    values[2] *= 3
    values[3, :, :1], values[3, :, 1:] = 1e30, -5
    clipped = clip(values, everyone(values), (1, 2), 2.0)
    np.testing.assert_allclose(clipped[3, :, 0], 2 * 2)  # twice the lower median, 2
    np.testing.assert_allclose(clipped[3, :, 1:], -4)
    np.testing.assert_array_equal(clipped[:3], values[:3])
    alone = some(1)
    np.testing.assert_array_equal(clip(alone, everyone(alone), (1, 4), 1.0), alone)
    np.testing.assert_array_equal(clip(0 * values, everyone(values), (1, 0, 2), 1.0), 0 * values)
    # who skipped a step is not smaller for it, and a silent majority bounds nobody to zero
    taken = everyone(values)
    taken[0, 1] = False
    silent = np.zeros((4, 2, 3))
    silent[0, 0] = 7
    np.testing.assert_array_equal(clip(silent, taken, (1, 2), 1.0), silent)


def flipped(report: Report, past: list[Report]) -> list[bytes]:
    return [scaled(report, -3)]


def noise(report: Report, past: list[Report]) -> list[bytes]:
    g = report.gradients
    random = np.random.RandomState(report.round * 64 + report.client)
    values = 20 * np.abs(g.values).mean() * random.standard_normal(g.values.shape)
    lie = replace(g, values=values.astype(np.float32))
    return [replace(report, gradients=lie).encode()]


@pytest.mark.slow
def test_liars_ruin_the_mean_and_no_other_rule() -> None:
    data = toy_data([20] * 10 + [300])
    test = ToyTask().collate(data.pop())
    optimizer = OptimizerConfig(lr=(8e-2, 2e-1), perturbations=(1, 4))

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"loss": float(ToyTask().loss(model, test))}

    def losses(rule: str, lie: Answer | None) -> tuple[float, float]:
        """Held-out, before and after training over ten clients, three of them liars."""
        federation = FederationConfig(
            clients=10, rounds=15, batch_size=20, seeds="shared", aggregation=rule
        )
        done = run(
            toy(),
            ToyTask(),
            data,
            federation,
            optimizer,
            evaluate=evaluate,
            evaluate_every=15,
            link=lambda link: link if lie is None else Faulty(link, LIARS, range(15), lie),
        )
        return done.rounds[0].eval_loss or 0.0, done.final.eval_loss or 0.0

    start, clean = losses("mean", None)
    assert clean < 0.6 * start
    for lie in (flipped, noise):
        assert losses("mean", lie)[1] > start
        for rule in NAMES[1:]:
            assert losses(rule, lie)[1] < (clean + start) / 2, rule

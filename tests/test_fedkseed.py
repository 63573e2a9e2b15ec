"""FedKSeed against its published rule, its pool and its messages."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from federated_toys import toy
from published_rules import (
    DATA,
    FEDERATION,
    LR,
    OPTIMIZER,
    SEED,
    SIZES,
    TASK,
    agrees,
    batch,
    direction,
    loss_on,
    moved,
    start,
    step,
)

from fedspzo.baselines import FedKSeed, mezo
from fedspzo.baselines.fedkseed import PoolServer
from fedspzo.baselines.pool import Pool
from fedspzo.baselines.pool_messages import PoolPlan, PoolReport, as_pairs
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, run
from fedspzo.journal import records as journal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("weighted", [False, True])
def test_fedkseed_accumulates_a_scalar_for_each_member_of_its_pool(weighted):
    size, blocks = 6, toy()
    federation = FederationConfig(clients=3, rounds=4, local_steps=2, participation=0.67, seed=SEED)
    result = run(
        blocks,
        TASK,
        DATA,
        federation,
        OPTIMIZER,
        strategy=partial(FedKSeed, pool=size, weighted=weighted),
    )
    pool = Pool(size, SEED)
    base = start()
    zs = [direction(base, int(seed)) for seed in pool.seeds]
    a, history, odds = np.zeros(size), [[0.0] for _ in range(size)], None
    drawn = set()
    for number in range(4):
        weights = base
        for j, z in enumerate(zs):
            weights = moved(weights, -LR * a[j], z)
        if weighted:
            amplitudes = np.array([np.mean(np.abs(values)) for values in history])
            normal = (amplitudes - amplitudes.min()) / (np.ptp(amplitudes) + 1e-10)
            odds = torch.softmax(torch.from_numpy(normal), 0).float().numpy()
        pairs = []
        taking_part = result.rounds[number + 1].clients
        for client in taking_part:
            own = weights
            for k in range(2):
                member = pool.draw(number, client, k, odds)
                own, (g,) = step(own, loss_on(batch(client, number, k)), [zs[member]], "two")
                pairs.append((client, member, g))
        for client, member, g in pairs:
            a[member] += g * SIZES[client] / sum(SIZES[c] for c in taking_part)
            history[member].append(g)
            drawn.add(member)
    final = base
    for j, z in enumerate(zs):
        final = moved(final, -LR * a[j], z)
    assert agrees(blocks.model, final)
    assert len(drawn) > 1
    # whoever joins late replays one term a member from the base, and holds the same bits
    (record,) = result.records
    late = Blocks.single(toy().model)
    journal.apply(record, late.groups)
    assert len(record.terms[0].seeds) == len(drawn)
    assert journal.digest(late.model.named_parameters()) == result.final.digest
    assert journal.digest(blocks.model.named_parameters()) == result.final.digest


def test_fedkseed_finds_a_rate_for_one_clients_steps():
    federation = replace(FEDERATION, rounds=1)
    found = run(
        toy(),
        TASK,
        DATA,
        federation,
        OptimizerConfig(lr="auto"),
        strategy=partial(FedKSeed, pool=4),
    )
    assert found.optimizer.lr != "auto"
    fixed = run(toy(), TASK, DATA, federation, found.optimizer, strategy=partial(FedKSeed, pool=4))
    assert found.final.digest == fixed.final.digest
    shared = mezo.settings(OptimizerConfig(lr="auto"))
    alone = run(Blocks.single(toy().model), TASK, DATA, replace(federation, seeds="shared"), shared)
    assert found.optimizer.learning_rates == alone.rounds[1].lr


def test_fedkseed_draws_by_the_mean_magnitudes_of_all_reports():
    server = PoolServer(3, LR)
    first = PoolReport(0, 0, 1.0, 4.0, 0, as_pairs([1, 2], [-2.0, 4.0]))
    second = PoolReport(0, 1, 1.0, 4.0, 0, as_pairs([2, 2], [-3.0, 5.0]))
    server.aggregate({0: first, 1: second}, {0: 0.75, 1: 0.25})
    np.testing.assert_allclose(
        server.coefficients, [0, LR * 1.5, -LR * (0.75 * 4 + 0.25 * 2)], rtol=1e-6
    )
    # each history begins with a zero: means 0, 2 / 2 and (4 + 3 + 5) / 4
    p = server.probabilities()
    e = np.exp([0, 1 / 3, 1])
    np.testing.assert_allclose(p, e / e.sum(), rtol=1e-6)
    pool, n = Pool(3, 0), 6000
    draws = np.bincount([pool.draw(0, 0, k, p) for k in range(n)], minlength=3)
    assert (np.abs(draws - n * p) < 5 * np.sqrt(n * p * (1 - p))).all()
    uniform = np.bincount([pool.draw(0, 0, k) for k in range(n)], minlength=3)
    assert (np.abs(uniform - n / 3) < 5 * np.sqrt(n * 2 / 9)).all()


@pytest.mark.parametrize("changed", [1, 3, 4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_pool_plan_sends_pairs_or_all_coefficients_whichever_is_less(changed, weighted):
    known = np.arange(8, dtype=np.float32)
    new = known.copy()
    new[:changed] += 0.5
    odds = np.full(8, 0.125, np.float32) if weighted else None
    plan = PoolPlan(3, 1, "ab" * 16, new, odds)
    data = plan.encode(known)
    got = PoolPlan.decode(data, known)
    np.testing.assert_array_equal(got.coefficients, new)
    assert (got.round, got.client, got.digest) == (3, 1, "ab" * 16)
    assert (got.probabilities is None) == (odds is None)
    assert len(data) == 14 + 29 + min(8 * changed, 32) + (32 if weighted else 0)
    np.testing.assert_array_equal(known, np.arange(8))
    with pytest.raises(ValueError, match="checksum"):
        PoolPlan.decode(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], known)


def test_a_pool_report_costs_eight_bytes_a_step():
    report = PoolReport(2, 5, None, 4.0, 1, as_pairs([7, 7], [0.5, -1.0]))
    data = report.encode()
    got = PoolReport.decode(data)
    assert len(data) == 14 + struct.calcsize("<IIffHI") + 2 * 8
    assert (got.round, got.client, got.loss, got.forwards, got.skipped) == (2, 5, None, 4.0, 1)
    assert got.gradients.tolist() == [(7, 0.5), (7, -1.0)]


def test_fedkseed_says_what_it_does_not_take():
    settings = OptimizerConfig(estimator="mezo", perturbations=2)
    with pytest.raises(ValueError, match="perturbations is 2, but FedKSeed takes one"):
        run(toy(), TASK, DATA, FEDERATION, settings, strategy=FedKSeed)
    with pytest.raises(ValueError, match="pool is 0"):
        run(toy(), TASK, DATA, FEDERATION, OPTIMIZER, strategy=partial(FedKSeed, pool=0))
    with pytest.raises(ValueError, match=r"examples are of 2 clients, federation\.clients is 3"):
        run(toy(), TASK, DATA[:2], FEDERATION, OPTIMIZER, strategy=partial(FedKSeed, pool=2))

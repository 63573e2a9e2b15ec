"""MeZO, FedMeZO, DeComFL and the last block alone against their published rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from federated_toys import toy
from published_rules import (
    DATA,
    EPS,
    FEDERATION,
    LR,
    OPTIMIZER,
    SEED,
    SIZES,
    TASK,
    agrees,
    average,
    batch,
    direction,
    loss_on,
    moved,
    only,
    start,
    step,
)

from fedspzo.baselines import METHODS
from fedspzo.federated import FederationConfig, OptimizerConfig
from fedspzo.federated.protocol.updates import client_seed
from fedspzo.seeds import step_seeds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("sides", ["one", "two"])
def test_mezo_is_central_sgd_along_the_mean_of_g_z(sides):
    blocks = toy()
    settings = replace(OPTIMIZER, sides=sides, perturbations=3)
    result = METHODS["mezo"](blocks, TASK, DATA, FEDERATION, settings)
    pooled = [[example for own in DATA for example in own]]
    weights = start()
    for number in range(2):
        zs = [direction(weights, s) for s in step_seeds(SEED, number, (3,))[0]]
        weights, _ = step(weights, loss_on(batch(0, number, 0, data=pooled)), zs, sides)
    assert agrees(blocks.model, weights)
    assert result.final.forwards == 2 * (6 if sides == "two" else 4) + 1  # the first step's check
    assert result.final.clients == (0,)


def test_fedmezo_averages_the_weights_of_clients_that_took_mezo_steps():
    blocks = toy()
    result = METHODS["fedmezo"](blocks, TASK, DATA, FEDERATION, OPTIMIZER)
    weights = start()
    for number in range(2):
        locals_ = []
        for client in range(3):
            own = weights
            for k in range(2):
                (seeds,) = step_seeds(client_seed(SEED, client), 2 * number + k, (1,))
                loss = loss_on(batch(client, number, k))
                own, _ = step(own, loss, [direction(own, s) for s in seeds], "two")
            locals_.append(own)
        weights = average(locals_, [n / sum(SIZES) for n in SIZES])
    assert agrees(blocks.model, weights)
    assert result.final.bytes_up < result.final.fedavg_bytes


def test_decomfl_replays_the_mean_scalars_along_shared_directions():
    blocks = toy()
    federation = FederationConfig(clients=2, rounds=2, local_steps=2, seed=SEED)
    settings = replace(OPTIMIZER, perturbations=2)
    result = METHODS["decomfl"](blocks, TASK, DATA[:2], federation, settings)
    weights = start()
    for number in range(2):
        scalars = []
        for client in range(2):
            own, rows = weights, []
            for k in range(2):
                zs = [direction(own, s) for s in step_seeds(SEED, 2 * number + k, (2,))[0]]
                own, g = step(own, loss_on(batch(client, number, k)), zs, "one")
                rows.append(g)
            scalars.append(rows)
        for k, row in enumerate(np.mean(scalars, axis=0)):
            for seed, g in zip(step_seeds(SEED, 2 * number + k, (2,))[0], row, strict=True):
                weights = moved(weights, -LR * g / 2, direction(weights, seed))
    assert agrees(blocks.model, weights)
    assert result.final.forwards == 2 * 2 * 2 * 3 + 2  # each client's first step has a check


def test_last_block_trains_the_last_block_alone_along_the_mean_of_g_z():
    blocks = toy()
    settings = OptimizerConfig(
        lr=(LR, LR), eps=EPS, evaluation="layerwise", estimator="anchored", perturbations=(7, 3)
    )
    federation = replace(FEDERATION, clients=1, seeds="shared")
    result = METHODS["last-block"](blocks, TASK, DATA[:1], federation, settings)
    names = {name for name, _ in toy().groups[-1]}
    weights = start()
    for number in range(2):
        own = weights
        for k in range(2):
            seeds = step_seeds(SEED, 2 * number + k, (0, 3))[1]
            zs = [only(names, direction(own, seed)) for seed in seeds]
            own, _ = step(own, loss_on(batch(0, number, k)), zs, "one")
        weights = own
    assert agrees(blocks.model, weights)
    for name, parameter in blocks.model.named_parameters():
        assert torch.equal(parameter, start()[name]) == (name not in names)
    assert result.final.forwards < 4 * (1 + 3)


def test_last_block_takes_one_rate_for_any_number_of_blocks():
    """By the rule it is P / 1 times the rate; the blocks at rest have one that is not used."""
    both = [toy(at=(1, "head")), toy(at=(1, "head"))]
    for blocks, lr in zip(both, (LR, (LR, LR, 3 * LR)), strict=True):
        settings = OptimizerConfig(lr=lr, perturbations=(1, 1, 3))
        METHODS["last-block"](blocks, TASK, DATA, FEDERATION, settings)
    first, second = (dict(blocks.model.named_parameters()) for blocks in both)
    assert all(torch.equal(first[name], second[name]) for name in first)

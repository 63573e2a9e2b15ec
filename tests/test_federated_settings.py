"""The settings of a federation and of its steps are checked when they are made."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from first_steps_toys import resolve
from small_federation import (
    FEDERATION,
    OPTIMIZER,
)

from fedspzo.federated import (
    Client,
    OptimizerConfig,
)
from fedspzo.journal.replica import Replica

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 0}, "clients is 0"),
        ({"clients": 2.0}, "clients is 2.0"),
        ({"rounds": True}, "rounds is True"),
        ({"local_steps": 65536}, "local_steps is 65536"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"participation": 0.0}, "participation is 0.0"),
        ({"participation": 1.5}, "participation is 1.5; give a share"),
        ({"participation": math.nan}, "participation is nan"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": -1}, "seed is -1"),
        ({"partition": "random"}, "partition is 'random'; give one of 'iid', 'dirichlet'"),
        ({"seeds": "own"}, "seeds is 'own'"),
        ({"weighting": "size"}, "weighting is 'size'"),
        ({"aggregation": "best"}, "aggregation is 'best'; give one of 'mean', 'trimmed-mean'"),
        ({"aggregation": "krum"}, "aggregation is 'krum', .* set seeds = 'shared'"),
        ({"byzantine": 0.5}, "byzantine is 0.5; give a share from 0, below 0.5"),
        ({"byzantine": -0.1}, "byzantine is -0.1"),
        ({"clip": 0.5}, "clip is 0.5; give at least 1"),
        ({"clip": math.nan}, "clip is nan"),
        ({"quorum": 0}, "quorum is 0"),
        ({"quorum": 1.1}, "quorum is 1.1; give a share"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_federation_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(FEDERATION, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": None}, "lr is None"),
        ({"lr": (1.0, math.inf)}, "lr is inf"),
        ({"lr": (1.0,)}, r"lr is \(1.0,\); give one number, or one for each of several blocks"),
        ({"lr": ()}, r"lr is \(\)"),
        (
            {"lr": (1.0, 2.0, 3.0)},
            r"lr is \(1.0, 2.0, 3.0\), perturbations is \(1, 4\); .* of both",
        ),
        ({"eps": -1e-3}, "eps is -0.001"),
        ({"estimator": "spsa"}, "estimator is 'spsa'; give one of anchored, balanced"),
        ({"sides": "both"}, "sides is 'both'"),
        ({"rounding": "down"}, "rounding is 'down'"),
        ({"stream": "signs"}, "stream is 'signs'"),
        ({"perturbations": 4}, r"perturbations is 4; give one number a block, \[P1, P2\]"),
        ({"perturbations": (4,)}, r"perturbations is \(4,\); give one number a block"),
        ({"perturbations": (1,) * 256}, "give one number a block, .* at most 255"),
        ({"perturbations": (0, 0, 0)}, "give at least one block some"),
        ({"perturbations": (1, 2, -1)}, r"perturbations \(P3\) is -1"),
        ({"perturbations": (65535, 1)}, "give 1 to 65535 directions in all"),
        (
            {"perturbations": (1, 0), "estimator": "balanced"},
            "perturbations is 0; pass an int of at least 1",
        ),
        ({"perturbations": (256, 256), "estimator": "balanced"}, "1 to 65535 directions in all"),
        (
            {"perturbations": (1, 2, 3), "estimator": "balanced"},
            r"needs two blocks, but there are 3; .* \[P1, P2\]",
        ),
        (
            {"perturbations": (1, 1), "estimator": "balanced", "sides": "two"},
            "needs at least 2; raise P2",
        ),
        ({"sides": "one", "estimator": "coupled"}, "sides is 'one', but 'coupled'"),
        ({"estimator": "mezo"}, r"perturbations is \(1, 4\)"),
        ({"estimator": "mezo", "perturbations": 1, "lr": (1.0, 2.0)}, "but 'mezo' has one block"),
    ],
)
def test_optimizer_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIMIZER, **changes)


def test_settings_are_resolved_from_the_model():
    client = Client(0, Replica(toy(torch.bfloat16)), toy_data([4])[0], ToyTask())
    before = client.replica.digest()
    made = resolve(OptimizerConfig(lr=1e-3, at=-1), [client], batch_size=2)
    assert (made.sides, made.rounding, made.at) == ("two", "stochastic", "auto")
    p1, p2 = made.perturbations
    assert p1 == 1
    assert p2 == 2
    assert made.lr == (1e-3, p2 / p1 * 1e-3)
    assert client.replica.digest() == before
    assert resolve(made, [client], batch_size=2) == made
    balanced = resolve(OptimizerConfig(lr=1e-3, estimator="balanced"), [client], batch_size=2)
    p1, p2 = balanced.perturbations
    assert (p1, p2 % 2) == (1, 0)
    assert balanced.lr == (1e-3, p2 * 1e-3)
    mezo = resolve(
        OptimizerConfig(lr=1e-3, estimator="mezo"),
        [Client(0, Replica(toy(single=True)), toy_data([4])[0], ToyTask())],
        batch_size=2,
    )
    assert (mezo.perturbations, mezo.lr) == (1, (1e-3,))


def test_settings_for_another_number_of_blocks_are_named():
    client = Client(0, Replica(toy(at=(1, "head"))), toy_data([4])[0], ToyTask())
    for settings, message in (
        (OPTIMIZER, r"perturbations is \(1, 4\), but there are 3 blocks"),
        (OptimizerConfig(lr=(1.0, 1.0)), r"lr is \(1.0, 1.0\), but there are 3 blocks"),
        (OptimizerConfig(estimator="balanced"), "'balanced' needs two blocks, but there are 3"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(settings, [client], batch_size=2)


def test_the_settings_of_mezo_take_one_rate():
    made = OptimizerConfig(estimator="mezo", perturbations=3, lr=(1e-3,))
    assert (made.directions, made.learning_rates) == ((3,), (1e-3,))


def test_settings_load_without_torch_or_numpy():
    code = (
        "import sys, fedspzo.federated.settings as s; s.FederationConfig(clients=2, rounds=1);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

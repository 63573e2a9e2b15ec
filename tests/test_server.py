"""The server: whom it samples, how it weights clients, what it adds to the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_federation import (
    FEDERATION,
    SIZES,
    a_federation,
    a_round,
)

from fedspzo.federated.coefficients import weights
from fedspzo.federated.protocol.updates import EVERYBODY

pytestmark = pytest.mark.usefixtures("one_thread")


def test_coefficients_are_learning_rate_weight_and_gradient():
    server, clients = a_federation(replace(FEDERATION, participation=1.0))
    reports = a_round(server, clients)
    update = server.aggregate(reports).update
    for (client, made), report in zip(update.entries, reports, strict=True):
        weight = SIZES[client] / sum(SIZES)
        g = report.gradients.values.astype(np.float64)
        np.testing.assert_allclose(made.values[:, 0], -1e-2 * weight * g[:, 0], rtol=1e-6)
        np.testing.assert_allclose(
            made.values[:, 1:], -4e-2 * weight * g[:, 1:] / 4, rtol=1e-6
        )  # by the rule, 4 / 1 times block 1's


def test_weighting():
    server, clients = a_federation(replace(FEDERATION, participation=1.0))
    reports = a_round(server, clients)
    assert weights(reports, server.federation.weighting) == {i: n / 60 for i, n in enumerate(SIZES)}
    server, _ = a_federation(replace(FEDERATION, participation=1.0, weighting="uniform"))
    assert weights(reports, server.federation.weighting) == dict.fromkeys(range(4), 0.25)


def test_shared_scalars_are_averaged():
    server, clients = a_federation(replace(FEDERATION, participation=1.0, seeds="shared"))
    reports = a_round(server, clients)
    ((client, made),) = server.aggregate(reports).update.entries
    assert client == EVERYBODY
    mean = sum(SIZES[i] / 60 * r.gradients.values.astype(float) for i, r in enumerate(reports))
    np.testing.assert_allclose(made.values[:, 0], -1e-2 * mean[:, 0], rtol=1e-6)


def test_sampling_is_fair_and_deterministic():
    federation = replace(FEDERATION, rounds=400)
    server, _ = a_federation(federation)
    counts = np.zeros(4)
    samples = []
    for number in range(400):
        server.replica.round = number
        samples.append(server.sample())
        assert samples[-1] == server.sample() == tuple(sorted(set(samples[-1])))
        counts[list(samples[-1])] += 1
    assert abs(counts - 200).max() < 6 * 10  # binomial(400, 1/2): sigma 10
    assert replace(FEDERATION, participation=0.01).participants == 1

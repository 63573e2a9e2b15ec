"""Steps whose losses are not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from federated_toys import ToyTask, toy, toy_data
from small_federation import (
    FEDERATION,
    OPTIMIZER,
    SIZES,
    a_federation,
    a_round,
    digests,
)

from fedspzo.federated import (
    run,
)
from fedspzo.federated.coefficients import weights

pytestmark = pytest.mark.usefixtures("one_thread")


class Diverges(ToyTask):
    """Its loss is not finite for every batch that holds label 0."""

    def loss(self, model, batch):
        value = super().loss(model, batch)
        return value * math.nan if (batch[1] == 0).any() else value


@pytest.mark.parametrize("seeds", ["per-client", "shared"])
@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_skipped_steps_contribute_nothing(seeds):
    server, clients = a_federation(replace(FEDERATION, participation=1.0, seeds=seeds))
    clients[2].task = Diverges()
    reports = a_round(server, clients)
    assert reports[2].gradients.steps == ()
    assert reports[2].loss is None
    assert reports[2].digest == server.digest
    update = server.aggregate(reports).update
    if seeds == "per-client":
        assert [client for client, _ in update.entries] == [0, 1, 3]
    else:
        shares = weights(reports, server.federation.weighting)
        mean = sum(shares[i] * reports[i].gradients.values.astype(float) for i in (0, 1, 3))
        values = update.entries[0][1].values
        np.testing.assert_allclose(values[:, 0], -1e-2 * mean[:, 0], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_a_round_in_which_nobody_took_a_step_moves_nothing():
    blocks = toy()
    data = [[(x, 0) for x, _ in client] for client in toy_data(SIZES)]
    result = run(blocks, Diverges(), data, FEDERATION, OPTIMIZER)
    assert len(set(digests(result))) == 1
    assert result.final.loss is None
    assert result.final.skipped == FEDERATION.participants * 4 * 2
    assert all(len(t.seeds) == 0 for entry in result.records for t in entry.terms)

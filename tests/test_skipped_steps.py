"""Steps whose losses are not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from small_federation import (
    FEDERATION,
    OPTIMIZER,
    SIZES,
    a_federation,
    a_round,
    digests,
)

from fedspzo.baselines.fedavg import FedAvg
from fedspzo.baselines.fedkseed import FedKSeed
from fedspzo.federated import (
    run,
)
from fedspzo.federated.coefficients import weights
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.rejections import NO_FINITE_LOSS

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
    done = server.aggregate(reports)
    update = done.update
    assert [(fault.client, fault.reason) for fault in done.rejected] == [(2, NO_FINITE_LOSS)]
    assert [report.client for report in done.reports] == [0, 1, 2, 3]  # what it cost is counted
    # it has no share, and those of the others add up to 1
    shares = weights([reports[i] for i in (0, 1, 3)], server.federation.weighting)
    if seeds == "per-client":
        assert [client for client, _ in update.entries] == [0, 1, 3]
        for client, added in update.entries:
            sent = reports[client].gradients.values.astype(float)
            np.testing.assert_allclose(
                added.values[:, 0], -1e-2 * shares[client] * sent[:, 0], rtol=1e-6
            )
    else:
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


METHODS = {
    "per-client": ({}, {}, None),
    "shared": ({"seeds": "shared"}, {}, None),
    "median": ({"seeds": "shared", "aggregation": "median"}, {}, None),
    "uniform": ({"weighting": "uniform"}, {}, None),
    "FedAvg": ({}, {}, FedAvg),
    "FedKSeed": ({}, {"estimator": "mezo", "perturbations": 1}, FedKSeed),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_a_run_is_that_of_the_clients_whose_losses_are_finite(method, tmp_path):
    changes, optimizer, strategy = METHODS[method]
    data = [[(x, 1 + y % 2) for x, y in own] for own in toy_data(SIZES)]
    lost = [(x, 0) for x, _ in toy_data([40])[0]]
    federation = replace(FEDERATION, participation=1.0, **changes)
    settings = replace(OPTIMIZER, **optimizer)

    def train(clients, journal=None):
        blocks = toy(single=strategy is not None)
        sizes = replace(federation, clients=len(clients))
        done = run(blocks, Diverges(), clients, sizes, settings, strategy=strategy, journal=journal)
        return done, torch.nn.utils.parameters_to_vector(blocks.model.parameters())

    journal = None if strategy else RunJournal(tmp_path / "journal.fspz", source="toy")
    (whole, weights_whole), (rest, weights_rest) = train([*data, lost], journal), train(data)
    torch.testing.assert_close(weights_whole, weights_rest, rtol=1e-6, atol=1e-8)
    if strategy is not FedAvg:
        assert digests(whole) == digests(rest)
    for row in whole.rounds[1:]:
        assert [(fault.client, fault.reason) for fault in row.rejected] == [(4, NO_FINITE_LOSS)]
        assert not rest.rounds[row.round].rejected
    assert whole.final.skipped == 4 * 2
    if journal is not None:
        journal.close()
        resumed, _ = train([*data, lost], RunJournal(tmp_path / "journal.fspz", source="toy"))
        assert [replace(r, seconds=0) for r in resumed.rounds] == [
            replace(r, seconds=0) for r in whole.rounds
        ]

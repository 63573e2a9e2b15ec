"""A client: it catches up, takes steps, returns, and skips what is not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from small_federation import (
    FEDERATION,
    a_federation,
    a_round,
    plan_of,
)

from fedspzo.federated import (
    Client,
    DigestError,
    Plan,
)
from fedspzo.journal.records import digest
from fedspzo.journal.replica import Replica

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_client_returns_exactly_and_its_seeds_are_its_own():
    server, clients = a_federation()
    first, second = (clients[i] for i in server.sample())
    before = first.replica.digest()
    reports = a_round(server, clients)
    assert {r.digest for r in reports} == {before} == {server.digest}
    assert digest(first.replica.blocks.model.named_parameters()) == before
    again = Client(first.client, second.replica, first.examples, ToyTask())
    assert again.handle(plan_of(server, first)) == reports[0]  # on another copy of the model
    stranger = Client(second.client, first.replica, first.examples, ToyTask())
    assert stranger.handle(plan_of(server, second)).gradients != reports[0].gradients


def test_batches_follow_from_seed_round_client_and_step():
    examples = list(range(100))

    class Plain(ToyTask):
        def collate(self, examples):
            return tuple(examples)

    replica = Replica(toy())
    a, b = (Client(number, replica, examples, Plain()) for number in (0, 1))
    base = a.batch(1, 2, 3, 8)
    assert len(set(base)) == 8
    assert a.batch(1, 2, 3, 8) == base
    others = [a.batch(0, 2, 3, 8), a.batch(1, 0, 3, 8), a.batch(1, 2, 0, 8), b.batch(1, 2, 3, 8)]
    assert len({base, *others}) == 5


def test_a_client_that_missed_rounds_catches_up():
    server, clients = a_federation(replace(FEDERATION, participation=0.25, rounds=8))
    for _ in range(8):
        server.aggregate(a_round(server, clients))
    late = min(clients, key=lambda c: c.replica.round)
    missed = 8 - late.replica.round
    assert missed > 1
    plan = Plan.decode(plan_of(server, late, train=False).encode())
    assert len(plan.updates) == missed
    report = late.handle(plan)
    assert late.replica.round == 8
    assert report.digest == server.digest
    assert report.gradients.steps == ()


def test_a_client_with_other_weights_says_so():
    server, clients = a_federation()
    number = server.sample()[0]
    with torch.no_grad():
        clients[number].replica.blocks.model.head.bias[0] += 1e-6
    with pytest.raises(DigestError, match=f"client {number} has weights with digest .* round 0"):
        clients[number].handle(plan_of(server, clients[number]))


def test_a_client_refuses_plans_of_others_and_from_the_past():
    server, clients = a_federation()
    a, b = server.sample()
    with pytest.raises(ValueError, match=f"plan is for client {a}, this is client {b}"):
        clients[b].handle(plan_of(server, clients[a]))
    old = plan_of(server, clients[a])
    server.aggregate(a_round(server, clients))
    clients[a].handle(plan_of(server, clients[a], train=False))
    with pytest.raises(ValueError, match=r"plan is for round 0, client .* is at round 1"):
        clients[a].handle(old)
    server.aggregate(a_round(server, clients))
    gap = server.plan(a, since=1)
    fresh = Client(a, Replica(toy()), toy_data([3])[0], ToyTask())
    with pytest.raises(ValueError, match="cannot apply the record of round 1"):
        fresh.handle(gap)


def test_an_exception_in_a_step_leaves_the_global_weights():
    server, clients = a_federation()
    client = clients[server.sample()[0]]
    calls = iter(range(100))

    class Fails(ToyTask):
        def loss(self, model, batch):
            if next(calls) == 9:
                raise ZeroDivisionError
            return super().loss(model, batch)

    client.task = Fails()
    with pytest.raises(ZeroDivisionError):
        client.handle(plan_of(server, client))
    assert client.replica.digest() == server.digest

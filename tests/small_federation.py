"""Runs of four clients on a toy model, and their server and clients, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from federated_toys import ToyTask, toy, toy_data
from first_steps_toys import resolve

from fedspzo.federated import (
    Client,
    FederationConfig,
    OptimizerConfig,
    Plan,
    Report,
    RunResult,
    Server,
    run,
)
from fedspzo.journal.replica import Replica

SIZES = [5, 9, 16, 30]
OPTIMIZER = OptimizerConfig(lr=1e-2, perturbations=(1, 4))
FEDERATION = FederationConfig(clients=4, rounds=4, local_steps=2, participation=0.5, seed=11)


def train(
    federation: FederationConfig = FEDERATION,
    optimizer: OptimizerConfig = OPTIMIZER,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: list[int] = SIZES,
    **options: Any,
) -> RunResult:
    blocks = toy(dtype, single=optimizer.estimator == "mezo")
    return run(blocks, ToyTask(), toy_data(sizes), federation, optimizer, **options)


def digests(result: RunResult) -> list[str]:
    return [r.digest for r in result.rounds]


def a_federation(
    federation: FederationConfig = FEDERATION, optimizer: OptimizerConfig = OPTIMIZER
) -> tuple[Server, list[Client]]:
    """A server and clients that each have a model of their own."""
    base = Replica(toy())
    clients = [
        Client(number, base.copy(), examples, ToyTask())
        for number, examples in enumerate(toy_data(SIZES))
    ]
    return Server(base, federation, resolve(optimizer, clients, batch_size=8)), clients


def a_round(server: Server, clients: list[Client]) -> list[Report]:
    return [clients[number].handle(plan_of(server, clients[number])) for number in server.sample()]


def plan_of(server: Server, client: Client, *, train: bool = True) -> Plan:
    return server.plan(client.client, since=client.replica.round, train=train)

"""What the steps before the first round find, of clients in this process."""

from __future__ import annotations

from collections.abc import Sequence

from fedspzo.federated import Client, FederationConfig, OptimizerConfig
from fedspzo.federated.exchange import InProcess
from fedspzo.federated.first_steps import FirstSteps
from fedspzo.federated.found_rates import FoundRates


def first_steps(clients: Sequence[Client], federation: FederationConfig) -> FirstSteps:
    sizes = {client.client: len(client.examples) for client in clients}
    return FirstSteps(clients[0].replica, federation, InProcess(clients), sizes)


def resolve(
    settings: OptimizerConfig, clients: Sequence[Client], *, batch_size: int
) -> OptimizerConfig:
    federation = FederationConfig(clients=len(clients), rounds=1, batch_size=batch_size)
    return first_steps(clients, federation).measure(settings)


def find(
    settings: OptimizerConfig, clients: Sequence[Client], federation: FederationConfig
) -> FoundRates:
    return first_steps(clients, federation).find(settings)

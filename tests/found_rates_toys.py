"""A small federation with lr="auto", its reports and its runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from federated_toys import ToyTask, toy, toy_data
from first_steps_toys import find, resolve

from fedspzo.federated import (
    Client,
    FederationConfig,
    OptimizerConfig,
    Report,
    RunResult,
    run,
)
from fedspzo.federated.found_rates import FoundRates
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.updates import Scalars
from fedspzo.journal.replica import Replica

AUTO = OptimizerConfig(lr="auto")
FEDERATION = FederationConfig(clients=4, rounds=6, local_steps=2, batch_size=4, seed=11)
DIRECTIONS = (1, 2)


def clients_of(sizes: list[int]) -> list[Client]:
    replica = Replica(toy())
    return [Client(n, replica, own, ToyTask()) for n, own in enumerate(toy_data(sizes))]


def found(steps: int = 1, participation: float = 1.0) -> FoundRates:
    clients = clients_of([5, 5, 5, 5])
    settings = replace(resolve(AUTO, clients, batch_size=4), perturbations=DIRECTIONS)
    federation = replace(FEDERATION, local_steps=steps, participation=participation)
    return find(settings, clients, federation)


def report(client: int, *, size: float = 0.1, loss: float = 1.0, steps: int = 2) -> Report:
    """Of gradients that all have this size."""
    return Report(
        round=0,
        client=client,
        digest="0" * 32,
        examples=5,
        gradients=Scalars(2, tuple(range(steps)), np.full((steps, 3), size, np.float32)),
        loss=loss if steps else None,
        forwards=4.0,
    )


def reports(**changes: float) -> list[Report]:
    return [report(client, **changes) for client in range(4)]


def federate(path: Path, optimizer: OptimizerConfig = AUTO, **changes: Any) -> RunResult:
    after = changes.pop("stop_after", None)

    def stop(result: Any) -> None:
        if result.round == after:
            raise KeyboardInterrupt

    single = optimizer.estimator == "mezo"
    with RunJournal(path, source="toy") as journal:
        return run(
            toy(single=single),
            ToyTask(),
            toy_data([9, 5, 7, 6]),
            replace(FEDERATION, **changes),
            optimizer,
            on_round=stop,
            journal=journal,
        )

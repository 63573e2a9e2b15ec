"""Clients that lie: the packaged model under each aggregation rule, with 30 % of ten clients lying.

    python benchmarks/federation_attacks.py           # prints the table of docs/federation.md
    python benchmarks/federation_attacks.py --fast    # a few rounds, for CI

"flipped": a liar sends -3 times its scalars, so it climbs where others descend. "random": it sends
normal noise ten times as large as its own scalars. Both claim as many examples as they have.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from machine import machine

from fedspzo.app import config as configuration
from fedspzo.app import models
from fedspzo.app.commands.run import DEMO_CONFIG
from fedspzo.app.data import read_splits
from fedspzo.blocks.cut import split
from fedspzo.federated import FederationConfig, Link, OptimizerConfig, Report, iid, run
from fedspzo.federated.aggregation import RULES
from fedspzo.federated.protocol.updates import Scalars

CLIENTS, LIARS = 10, (1, 4, 8)
KINDS = ("none", "flipped", "random")
OPTIMIZER = OptimizerConfig(
    lr=(2e-3, 6e-3), estimator="balanced", perturbations=(1, 6), at=-1, sides="one"
)


@dataclass
class Liars:
    """The way to the clients, some of whom lie about their scalars."""

    link: Link
    kind: str

    def exchange(self, client: int, plan: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        (data,) = self.link.exchange(client, plan, weights)
        return [self._lie(Report.decode(data)) if client in LIARS else data]

    def _lie(self, report: Report) -> bytes:
        true = report.gradients
        if self.kind == "flipped":
            values = -3 * true.values
        else:
            random = np.random.RandomState([report.round, report.client])
            size = 10 * np.sqrt(np.mean(true.values**2))
            values = size * random.standard_normal(true.values.shape)
        lie = Scalars(true.local_steps, true.steps, values.astype(np.float32))
        return replace(report, gradients=lie).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="few rounds: a check, not a result")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rounds = 2 if arguments.fast else 30

    config = configuration.load(DEMO_CONFIG)
    splits = read_splits(config.data, config.task)
    model, task, _ = models.load(config, splits)
    train, test = task.encode(splits.train), task.encode(splits.test)

    def accuracies(rule: str, kind: str) -> list[float]:
        found = []
        for seed in arguments.seeds:
            federation = FederationConfig(
                clients=CLIENTS,
                rounds=rounds,
                local_steps=3,
                batch_size=16,
                seeds="shared",
                aggregation=rule,
                seed=seed,
            )
            parts = iid(len(train), CLIENTS, seed)
            options: dict[str, Any] = {} if kind == "none" else {"link": liars(kind)}
            result = run(
                split(copy.deepcopy(model), at=-1),
                task,
                [[train[i] for i in part] for part in parts],
                federation,
                OPTIMIZER,
                evaluate=lambda model: task.evaluate(model, test),
                evaluate_every=rounds,
                **options,
            )
            found.append(result.final.accuracy or 0.0)
        return found

    print(f"{machine()}, {rounds} rounds, seeds {arguments.seeds}; held-out accuracy\n")
    print("| rule | no liars | flipped, times 3 | random, times 10 |")
    print("| --- | --- | --- | --- |", flush=True)
    for rule in RULES:
        cells = (f"{statistics.mean(accuracies(rule, kind)):.1%}" for kind in KINDS)
        print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)


def liars(kind: str) -> Any:
    """What `run` is given as `link`."""
    return lambda link: Liars(link, kind)


if __name__ == "__main__":
    main()

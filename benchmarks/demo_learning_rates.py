"""The demo's learning rates on other seeds than its own: MeZO's, tuned, beside those FedSPZO finds.

`python benchmarks/demo_learning_rates.py` prints a table of docs/demo.md; about 6 minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedspzo.app import config as configuration
from fedspzo.app.commands.run import DEMO_CONFIG
from fedspzo.app.data import read_splits
from fedspzo.app.run import run
from fedspzo.app.run_folder import RunFolder
from fedspzo.federated.settings import OptimizerConfig

MEZO = [1e-3, 1.5e-3, 2e-3, 3e-3]
MEZO_ROUNDS = 43  # cost what the demo's rounds cost


DEMO = configuration.load(DEMO_CONFIG)


def train(optimizer: OptimizerConfig, seed: int, rounds: int | None) -> dict[str, Any]:
    config = DEMO.with_overrides(output=None, seed=seed, rounds=rounds)
    config = replace(config, optimizer=optimizer, mezo=None)
    splits = read_splits(config.data, config.task)
    with tempfile.TemporaryDirectory() as name, RunFolder(Path(name)) as folder:
        return dict(run(config, splits, folder, quiet=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14])
    seeds = parser.parse_args().seeds
    print("| method | lr | accuracy | loss | full-forward equivalents |")
    print("| --- | --- | --- | --- | --- |")
    settings: list[tuple[str, OptimizerConfig, int | None]] = [
        ("FedSPZO", DEMO.optimizer, None),
        *(
            ("MeZO", OptimizerConfig(lr=lr, estimator="mezo", sides="two"), MEZO_ROUNDS)
            for lr in MEZO
        ),
    ]
    for name, optimizer, rounds in settings:
        done = [train(optimizer, seed, rounds) for seed in seeds]
        accuracy, loss, forwards = (
            statistics.mean(summary[key] for summary in done)
            for key in ("accuracy", "loss", "forwards")
        )
        print(
            f"| {name} | {optimizer.lr} | {accuracy:.1%} | {loss:.3f} | {forwards:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What runs a federation's clients: this process, or Flower."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from fedspzo.federated import Link, RunResult

from .config import Config, to_toml

Engine = Callable[[Callable[[Link | None], RunResult]], RunResult]
"""Plays a federation's rounds: calls the function with the link to the clients, or with None for
clients of this process, and returns what it returns."""


def in_process(rounds: Callable[[Link | None], RunResult]) -> RunResult:
    """Let the clients be objects of this process."""
    return rounds(None)


def engine_of(config: Config) -> Engine:
    """Return the engine that the config names."""
    if config.engine is None or not config.on_flower:
        return in_process
    processes = config.engine.processes

    def simulated(rounds: Callable[[Link | None], RunResult]) -> RunResult:
        import torch

        from fedspzo.integrations.flower import simulate

        from .flower_client import node_app

        with tempfile.TemporaryDirectory(prefix="fedspzo-") as folder:
            path = Path(folder) / "config.toml"
            path.write_text(to_toml(config), encoding="utf-8")
            keep = Path(folder) / "weights" if processes > 1 else None
            app = node_app(path, keep=keep, threads=torch.get_num_threads())
            return simulate(
                rounds,
                app,
                clients=config.federation.clients,
                processes=processes,
                timeout=config.federation.timeout,
            )

    return simulated

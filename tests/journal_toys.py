"""A small federated run that keeps a journal, and the base weights it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from federated_toys import ToyTask, toy_data
from safetensors.torch import save_file

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult, run
from fedspzo.federated.journal.writer import RunJournal

SETTINGS: dict[str, Any] = {
    "clients": 4,
    "rounds": 5,
    "local_steps": 2,
    "batch_size": 4,
    "participation": 0.6,
    "seed": 3,
}


def federate(path: Path, blocks: Blocks, **changes: Any) -> RunResult:
    optimizer = OptimizerConfig(lr=changes.pop("lr", 0.05), perturbations=changes.pop("p", (1, 2)))
    after = changes.pop("stop_after", None)

    def stop(result: Any) -> None:
        if result.round == after:
            raise KeyboardInterrupt

    with RunJournal(path, source="toy") as journal:
        return run(
            blocks,
            ToyTask(),
            toy_data([9, 5, 7, 6]),
            FederationConfig(**{**SETTINGS, **changes}),
            optimizer,
            evaluate=lambda model: {"loss": next(model.parameters()).detach().float().sum().item()},
            evaluate_every=2,
            on_round=stop,
            journal=journal,
        )


def save_base(folder: Path, blocks: Blocks) -> str:
    path = folder / "base.safetensors"
    save_file({name: p.detach() for name, p in blocks.model.named_parameters()}, path)
    return str(path)

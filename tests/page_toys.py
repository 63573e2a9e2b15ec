"""Folders of runs with values that a test knows, written without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = """
[model]
name = "net"
[task]
type = "{task}"
[data]
train = "/data/train.csv"
test = "/data/{test}.csv"
[federation]
clients = 3
rounds = {rounds}
[optimizer]
lr = {lr}
"""


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl. Even rounds are evaluated."""
    measured = number % 2 == 0
    return {
        "round": number,
        "train_loss": 0.7 - 0.01 * number if number else None,
        "loss": 0.7 - 0.02 * number if measured else None,
        "accuracy": 0.5 + 0.05 * number if measured else None,
        "forwards": 10.0 * number,
        "bytes_up": 100 * number,
        "bytes_down": 200 * number,
        "fedavg_bytes": 10**6 * number,
        "skipped": 0,
        "seconds": 1.5 * number,
        "digest": f"{number:032x}",
        "clients": [0, 1, 2] if number else [],
        "rejected": [],
        "downloads": [],
        **changes,
    }


def summary(rounds: int, **changes: Any) -> dict[str, Any]:
    """The last line of metrics.jsonl."""
    values = {"accuracy": 0.8, "loss": 0.4, "zero_shot_accuracy": 0.5, "zero_shot_loss": 0.7}
    return {"summary": True, **values, "rounds": rounds, "kept_round": rounds, **changes}


def write(
    folder: Path,
    rows: list[dict[str, Any]],
    end: dict[str, Any] | None = None,
    *,
    task: str = "classification",
    test: str = "test",
    lr: float = 1e-3,
) -> Path:
    """Write a run's folder, without a journal."""
    folder.mkdir(parents=True)
    lines = [*rows, *([end] if end is not None else [])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = CONFIG.format(task=task, test=test, rounds=len(rows) - 1, lr=lr)
    (folder / "config.toml").write_text(config)
    return folder

"""The demo over several seeds: accuracy beside MeZO's at the same computation, bytes, time.

`python benchmarks/demo_seeds.py [--seeds 3] [--results FILE.md]` runs `fedspzo demo` once a seed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import Round


def run(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedspzo", "demo", "--quiet"]
        subprocess.run([*command, "--seed", str(seed), "--output", folder], check=True)
        summary: dict[str, Any] = json.loads(
            (Path(folder) / "metrics.jsonl").read_text().splitlines()[-1]
        )
        summary["largest"] = largest(Path(folder) / "journal.fspz")
    return summary


def largest(journal: Path) -> list[float]:
    """Of each round and block: the largest client's scalars, times the usual size (`clip`)."""
    log = DecodedJournal(journal)
    assert log.settings is not None
    counts = log.settings[1].directions
    found = []
    for _, done in log.entries():
        if isinstance(done, Round):
            squares = [report.gradients.values.astype(float) ** 2 for report in done.reports]
            sizes = [np.split(s.mean(axis=0), np.cumsum(counts)[:-1]) for s in squares]
            for clients in zip(*sizes, strict=True):
                roots = [float(np.sqrt(block.mean())) for block in clients]
                found.append(max(roots) / statistics.median_low(roots))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = [run(seed) for seed in range(options.seeds)]

    ratios = [ratio for row in rows for ratio in row["largest"]]

    def percent(key: str) -> str:
        values = [row[key] for row in rows]
        listed = ", ".join(f"{value:.1%}" for value in values)
        return f"{statistics.mean(values):.1%} ({listed})"

    def mean(key: str, scale: float = 1.0) -> str:
        return f"{statistics.mean(row[key] for row in rows) / scale:,.1f}"

    lines = [
        "# The demo",
        "",
        f"`fedspzo demo` with seeds 0 to {options.seeds - 1}: means, each seed in brackets.",
        f"{machine()}; torch {torch.__version__}; {datetime.date.today()}.",
        "",
        "| | before | FedSPZO | MeZO, same computation |",
        "| --- | --- | --- | --- |",
        f"| held-out accuracy | {percent('zero_shot_accuracy')} | {percent('accuracy')}"
        f" | {percent('mezo_accuracy')} |",
        f"| full-forward equivalents | | {mean('forwards')} | {mean('mezo_forwards')} |",
        f"| kB up, all clients | | {mean('bytes_up', 1e3)} | {mean('mezo_bytes_up', 1e3)} |",
        f"| kB down, all clients | | {mean('bytes_down', 1e3)} | {mean('mezo_bytes_down', 1e3)} |",
        "",
        f"FedAvg would have sent {mean('fedavg_bytes', 1e6)} MB each way."
        f" Seconds for both runs: {mean('seconds')}.",
        "",
        "The largest client's scalars in a block, times the usual client's of that round"
        f" (`clip`): {statistics.median(ratios):.0f} in the median, at most {max(ratios):.0f}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.results:
        options.results.write_text(text)


if __name__ == "__main__":
    main()

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

import torch
from machine import machine


def run(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedspzo", "demo", "--quiet"]
        subprocess.run([*command, "--seed", str(seed), "--output", folder], check=True)
        summary: dict[str, Any] = json.loads(
            (Path(folder) / "metrics.jsonl").read_text().splitlines()[-1]
        )
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = [run(seed) for seed in range(options.seeds)]

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
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.results:
        options.results.write_text(text)


if __name__ == "__main__":
    main()

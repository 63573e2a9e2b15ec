"""What a round costs on Flower, beside the engine in one process: seconds, and where they go.

    make flower                                             # once: makes .venv-flower
    .venv-flower/bin/python benchmarks/flower_rounds.py     # writes results/flower_rounds.md

Two clients train a random model of a few thousand weights, so that what is measured is the way of
the messages. The deployment is a SuperLink and two SuperNodes on this machine, with TLS. The parts
of a client's process are seconds of a processor, which hardly depend on what else the machine does.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]

from flower_deployment import deployment, eventually  # noqa: E402
from machine import machine  # noqa: E402
from tiny_run import write_run  # noqa: E402

from fedspzo.app.cli import main  # noqa: E402
from fedspzo.federated import iid  # noqa: E402

RESULTS = Path(__file__).parent / "results"
ROUNDS = 8
SKIPPED = 2  # rounds in which nodes are found and processes start
PARTS = {
    "Python and Flower": "import flwr.supernode.cli, flwr.clientapp",
    "fedspzo, torch and transformers": "from fedspzo.app import flower_client, cutting, models",
    "the model and the examples": (
        "import sys; from pathlib import Path;"
        "flower_client._load(Path(sys.argv[1]), sys.argv[2], '', '')"
    ),
}


def write_config(folder: Path) -> Path:
    """The tests' tiny run, of two clients."""
    write_run(folder)
    text = (folder / "run.toml").read_text().split("[mezo]")[0]
    text = text.replace("clients = 3\nrounds = 4", f"clients = 2\nrounds = {ROUNDS}")
    text = text.replace("participation = 0.7\n", "") + "perturbations = [1, 2]\n"
    path = folder / "run.toml"
    path.write_text(text + f'[output]\ndir = "{folder / "out"}"\n')
    return path


def seconds_a_round(output: Path) -> float:
    """The median, without the first rounds."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    ends = [row["seconds"] for row in map(json.loads, lines) if "round" in row]
    return statistics.median(b - a for a, b in pairwise(ends[SKIPPED:]))


def deployed(folder: Path, config: Path) -> float:
    """Seconds a round of a deployment."""
    examples = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    for number, part in enumerate(iid(len(examples), 2, 0)):
        (folder / f"client{number}.jsonl").write_text("".join(examples[index] for index in part))
    output = folder / "deployed"
    config.write_text(config.read_text().replace(str(folder / "out"), str(output)))
    assert main(["flower", str(config), "-o", str(folder / "app")]) == 0
    with deployment(folder) as made:
        made.superlink()
        for number in range(2):
            made.supernode(number, folder / f"client{number}.jsonl")
        made.flwr("run", str(folder / "app"), "test")
        metrics = output / "metrics.jsonl"
        eventually(
            "the run ends", lambda: metrics.exists() and '"summary"' in metrics.read_text(), 1200
        )
    return seconds_a_round(output)


def processor_seconds(code: str, *arguments: str) -> float:
    """Seconds of a processor that a Python process takes; the least of three."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def lines() -> list[str]:
    """The tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder)
        text = config.read_text()
        rounds = {}
        for engine, section in (
            ("one process", ""),
            ("Flower's simulation, one process", '[engine]\nname = "flower"\n'),
        ):
            config.write_text(text + section)
            assert main(["run", str(config), "--quiet", "--overwrite"]) in (0, 4)
            rounds[engine] = seconds_a_round(folder / "out")
        config.write_text(text)
        rounds["Flower's deployment, two SuperNodes"] = deployed(folder, config)
        codes = list(PARTS.values())
        totals = [
            processor_seconds(
                "; ".join(codes[: count + 1]),
                str(folder / "app" / "fedspzo_app" / "config.toml"),
                str(folder / "client0.jsonl"),
            )
            for count in range(len(codes))
        ]
    parts = [b - a for a, b in pairwise([0.0, *totals])]
    return [
        "# A round on Flower",
        "",
        f"`python benchmarks/flower_rounds.py`, {machine()}, whose load was"
        f" {os.getloadavg()[2]:.0f}. Medians of {ROUNDS - SKIPPED} rounds.",
        "",
        "| two clients on a random model of a few thousand weights | seconds a round |",
        "| --- | --- |",
        *(f"| {engine} | {seconds:.2g} |" for engine, seconds in rounds.items()),
        "",
        "| a client's process, one a message | seconds of a processor |",
        "| --- | --- |",
        *(f"| {part} | {seconds:.1f} |" for part, seconds in zip(PARTS, parts, strict=True)),
    ]


if __name__ == "__main__":
    text = "\n".join(lines()) + "\n"
    print(text)
    (RESULTS / "flower_rounds.md").write_text(text)

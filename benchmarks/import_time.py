"""How long an import and a `--help` take, in pairs: a table of docs/results.md.

    python benchmarks/import_time.py [--pairs 9]

Each pair is two new processes, one after the other, of which the second does more. Seconds are the
processor's, which other programs disturb less than the clock's. The targets are those of the
project: names of fedspzo within 1.1 times torch, `--help` within 0.3 s of Python's own start.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from machine import machine
from tqdm.auto import tqdm

RESULTS = Path(__file__).parent / "results/import_time.md"
NAMES = "from fedspzo import SPZO, Blocks, Privacy, accumulate, split"
PAIRS = (
    ("`import torch; import fedspzo`", "`import torch`", "import torch; import fedspzo"),
    (f"`{NAMES}`", "`import torch`", NAMES),
)
HELPS = ("", "run", "demo", "predict", "eval", "replay", "verify", "journal show", "report", "info")


def seconds(*arguments: str) -> float:
    """The processor's seconds of a new Python process, the kernel's included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def medians(less: tuple[str, ...], more: tuple[str, ...], pairs: int) -> tuple[float, ...]:
    """The medians of both processes' seconds, of their ratios and of their differences."""
    for arguments in (less, more):
        seconds(*arguments)  # reads the files once
    found = [(seconds(*less), seconds(*more)) for _ in tqdm(range(pairs), desc=more[-1])]
    columns = (*zip(*found, strict=True), [b / a for a, b in found], [b - a for a, b in found])
    return tuple(statistics.median(column) for column in columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    lines = [
        "# How long an import and a `--help` take",
        "",
        f"`python benchmarks/import_time.py`: medians of {pairs} pairs of processes, in the"
        f" processor's seconds. On {machine()}.",
        "",
        "| what | beside | seconds | beside | ratio | difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = [(title, beside, ("-c", "import torch"), ("-c", code)) for title, beside, code in PAIRS]
    rows += [
        (
            f"`{' '.join(('fedspzo', *words.split(), '--help'))}`",
            "`python -c pass`",
            ("-c", "pass"),
            ("-m", "fedspzo", *words.split(), "--help"),
        )
        for words in HELPS
    ]
    for title, beside, less, more in rows:
        base, own, ratio, difference = medians(less, more, pairs)
        lines.append(
            f"| {title} | {beside} | {own:.3f} | {base:.3f} | {ratio:.2f} | {difference:.3f} |"
        )
        print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

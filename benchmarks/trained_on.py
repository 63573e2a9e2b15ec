"""Whether `lr="auto"` keeps what it has learned: training goes on long after the targets.

    python benchmarks/trained_on.py

The problems of `compute_to_target.py`, each for as many full forward passes as its budget is there,
with the first seeds of the race.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from machine import machine
from targets.methods import central
from targets.problems import PROBLEMS, Problem, load, runnable
from targets.runs import Setting, race
from tqdm.auto import tqdm

from fedspzo.auto_lr.constants import START

RESULTS = Path(__file__).parent / "results/trained_on.md"
METHOD = central("FedSPZO, lr auto")
SEEDS = range(3)
PARTS = 4


def rows(problem: Problem) -> Iterator[str]:
    """A row a seed: where it stands after each part of its budget, and its worst moment."""
    target = problem.accuracies[-1]
    loaded = load(problem.endless())
    for seed in tqdm(SEEDS, desc=problem.name, unit="run"):
        run = race(loaded, Setting(), METHOD, START, seed, problem.budget)
        cells = []
        for part in range(1, PARTS + 1):
            due = problem.budget * part / PARTS
            point = next(p for p in run.curve if p.forwards >= due)
            cells.append(f"{point.accuracy:.1%}, {point.loss:.2f}")
        reached = run.cost(accuracy=target)
        later = [p.accuracy for p in run.curve if reached and p.forwards > reached.forwards]
        lowest = f"{min(later):.1%}" if later else ""
        cells += [f"{max(p.accuracy for p in run.curve):.1%}", lowest]
        title = f"{problem.name}, {problem.budget} passes"
        yield f"| {title} | {seed} | {' | '.join(cells)} |"


def main() -> None:
    torch.set_num_threads(1)
    quarters = " | ".join(f"after {part}/{PARTS}" for part in range(1, PARTS + 1))
    lines = [
        "# Trained on",
        "",
        '`python benchmarks/trained_on.py`: `lr="auto"` beyond its targets; accuracy and loss on'
        f" examples never trained on. On {machine()}, torch {torch.__version__}.",
        "",
        f"| problem | seed | {quarters} | best | worst after the last target |",
        f"| --- | --- |{' --- |' * (PARTS + 2)}",
    ]
    for problem in runnable(PROBLEMS):
        lines += rows(problem)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

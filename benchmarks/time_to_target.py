"""Seconds to a target, side by side: FedSPZO and the best tuned MeZO train by turns in one process.

    python benchmarks/time_to_target.py            # an hour; resumes
    python benchmarks/time_to_target.py --report   # the table of what there is

SmolLM2-135M on the reviews, batches of 16. Each method trains for some `EVERY` full forward passes,
then the other does, so that both meet the same machine. Seconds are those of the steps, with the
checks of the first one; evaluations on the validation split are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from targets.methods import central
from targets.problems import PROBLEMS, Loaded, load, runnable
from targets.runs import Point, Results, Run, here

from fedspzo.federated.optimizers import spzo
from fedspzo.federated.partition import draw
from fedspzo.seeds import derive

RESULTS = Path(__file__).parent / "results/time_to_target.jsonl"
SETTING = "side by side"
RATES = {"FedSPZO, lr auto": 1.0, "MeZO, 4 one-sided": 2.0**-13}
"""The methods of `compute_to_target.py` and their rates; the first finds its own."""
TARGETS = (0.75, 0.78, 0.80)
SEEDS = range(3)
EVERY = 20
"""Full forward passes between evaluations."""
BUDGET = 800
"""Full forward passes after which a run is given up."""


def points(loaded: Loaded, name: str, seed: int) -> Iterator[Point]:
    """Train, and yield a point after every `EVERY` passes or soon after."""
    blocks = loaded.split(central(name).cut)
    optimizer = spzo(blocks, central(name).optimizer(RATES[name]), seed=seed)
    seconds, due = 0.0, 0.0
    while True:
        due = optimizer.forwards + EVERY
        begin = time.perf_counter()
        while optimizer.forwards < due:
            chosen = draw(len(loaded.train), loaded.problem.batch, derive(seed, optimizer.steps))
            batch = loaded.task.collate([loaded.train[i] for i in chosen])
            optimizer.step(lambda batch=batch: loaded.task.loss(blocks.model, batch))
        seconds += time.perf_counter() - begin
        found = loaded.evaluate(blocks.model)
        forwards = round(optimizer.forwards, 2)
        yield Point(forwards, found["loss"], found["accuracy"], round(seconds, 3))


def ended(run: Run) -> str:
    """Why a run is at its end; empty if it is not."""
    point = run.cost(accuracy=TARGETS[-1])
    if point is not None and point is not run.curve[-1]:
        return "targets"
    return "budget" if run.curve and run.curve[-1].forwards >= BUDGET else ""


def race(loaded: Loaded, seed: int) -> list[Run]:
    """Train all methods by turns, each until its last target holds or its budget is spent."""
    runs = [
        Run(loaded.problem.name, SETTING, name, lr, seed, machine=here())
        for name, lr in RATES.items()
    ]
    training = [points(loaded, run.method, seed) for run in runs]
    while not all(run.ended for run in runs):
        for run, following in zip(runs, training, strict=True):
            if not run.ended:
                run.curve.append(next(following))
                run.ended = ended(run)
    return runs


def report(runs: Sequence[Run]) -> str:
    """The table."""
    lines = [
        "# Seconds to a target, side by side",
        "",
        "`python benchmarks/time_to_target.py`: SmolLM2-135M on real movie reviews, float32,"
        " batches of 16. The two methods train by turns in one process, some"
        f" {EVERY} passes each; passes and seconds until an accuracy on 256 validation snippets"
        " holds at two looks in a row. One thread. On"
        f" {'; '.join(sorted({run.machine for run in runs}))}.",
        "",
        "| seed | accuracy | " + " | ".join(f"{name}: passes | seconds" for name in RATES) + " |"
        " times fewer passes | times less time |",
        "| --- | --- |" + " --- |" * (2 * len(RATES) + 2),
    ]
    for accuracy in TARGETS:
        for seed in sorted({run.seed for run in runs}):
            reached = [
                next(run for run in runs if (run.method, run.seed) == (name, seed)).cost(
                    accuracy=accuracy
                )
                for name in RATES
            ]
            lines.append(f"| {seed} | {accuracy:.0%} | {_cells(reached)} |")
    lines += ["", _seconds_a_pass(runs)]
    return "\n".join(lines) + "\n"


def _cells(reached: Sequence[Point | None]) -> str:
    cells = []
    for point in reached:
        cells += (
            [f"{point.forwards:.0f}", f"{point.seconds:.0f}"] if point else [f"not in {BUDGET}", ""]
        )
    ours, other = reached
    if ours and other:
        passes, seconds = other.forwards / ours.forwards, other.seconds / ours.seconds
        cells += [f"{passes:.1f}", f"{seconds:.1f}"]
    else:
        cells += ["", ""]
    return " | ".join(cells)


def _seconds_a_pass(runs: Sequence[Run]) -> str:
    """Seconds a pass of each method, while both of them trained."""
    texts = []
    for name in RATES:
        ratios = []
        for run in runs:
            if run.method == name:
                both = min(len(other.curve) for other in runs if other.seed == run.seed)
                ratios.append(run.curve[both - 1].seconds / run.curve[both - 1].forwards)
        texts.append(f"{name} {statistics.median(ratios):.2f}")
    return "Seconds a pass while both trained, the median of the seeds: " + "; ".join(texts) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = Results(RESULTS)
    chosen = [problem for problem in PROBLEMS if problem.name == "reviews"]
    for problem in [] if options.report else runnable(chosen):
        loaded = load(problem)
        for seed in SEEDS:
            if seed not in {run.seed for run in found.runs.values()}:
                lines = [json.dumps(asdict(run)) + "\n" for run in race(loaded, seed)]
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write("".join(lines))
    RESULTS.with_suffix(".md").write_text(
        report(list(Results(RESULTS).runs.values())), encoding="utf-8"
    )


if __name__ == "__main__":
    main()

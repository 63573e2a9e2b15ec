"""Computation to reach a target: FedSPZO beside other zeroth-order methods, rates tuned alike.

    python benchmarks/compute_to_target.py                  # everything: hours; resumes
    python benchmarks/compute_to_target.py --only decoder   # one problem
    python benchmarks/compute_to_target.py --report         # table and plot of what there is
    python benchmarks/compute_to_target.py --fast           # a small race, for CI

Each method's learning rate is looked for on the grid 2^k, from the method's first k on, until the
best one has worse neighbours: by the median of some seeds' cost to the last accuracy target, where
a run that diverges, however late, has not reached it. The rate found then runs on other seeds,
which the table shows. A federation has fewer of both.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from targets import report
from targets.methods import BASELINE, CENTRAL, FEDERATED, Method
from targets.problems import PROBLEMS, Loaded, Problem, load, runnable
from targets.runs import Results, Setting, seeds_of, settings
from tqdm.auto import tqdm

from fedspzo.auto_lr.constants import START

RESULTS = Path(__file__).parent / "results/compute_to_target"


def tune(
    results: Results, loaded: Loaded, setting: Setting, method: Method, seeds: Sequence[int]
) -> float:
    """The grid's best learning rate, with both of its neighbours tried."""
    scores: dict[int, tuple[float, float]] = {}

    def score(k: int) -> tuple[float, float]:
        """Cost to the last accuracy target, then the loss at the end: the median seed's."""
        if k not in scores:
            # what has cost more than the best rate's median seed has lost
            bound = min((cost for cost, _ in scores.values()), default=math.inf)
            bound = min(bound + loaded.problem.every, loaded.problem.tuning_budget)
            found = []
            for seed in seeds:
                run = results.get(loaded, setting, method, 2.0**k, seed, bound)
                diverged = run.ended == "diverged"  # sooner or later: a rate nobody would keep
                point = None if diverged else run.cost(accuracy=loaded.problem.accuracies[-1])
                loss = math.inf if diverged else run.curve[-1].loss
                found.append((point.forwards if point else math.inf, loss))
                if sum(math.isinf(loss) for _, loss in found) > (len(seeds) - 1) / 2:
                    break  # the median seed diverged: the others make that no better
            scores[k] = statistics.median_high(found)
        return scores[k]

    best = method.first + loaded.problem.grid
    while True:
        found = min((best - 1, best, best + 1), key=score)  # down where all of them diverge
        if found == best:
            return 2.0**best
        best = found


def race_all(
    results: Results,
    problem: Problem,
    which: Sequence[Setting],
    methods: Sequence[Method],
) -> None:
    """Tune and run every method in every setting."""
    loaded = load(problem)
    jobs = [(setting, method) for setting in which for method in methods]
    for setting, method in (progress := tqdm(jobs, desc=problem.name, unit="method")):
        progress.set_postfix_str(f"{setting.name}, {method.name}")
        found = method.settings.get("lr") == "auto"
        tuning, seeds = seeds_of(problem, setting)
        lr = START if found else tune(results, loaded, setting, method, tuning)
        for seed in seeds:
            results.get(loaded, setting, method, lr, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument(
        "--only", "--problem", choices=names, nargs="+", default=names, help="problems"
    )
    parser.add_argument("--setting", choices=("central", "federated"), nargs="+")
    parser.add_argument("--alpha", type=float, nargs="+")
    parser.add_argument("--steps", type=int, nargs="+")
    every = sorted({method.name for method in (*CENTRAL, *FEDERATED)})
    parser.add_argument("--methods", choices=every, nargs="+", default=every)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--fast", action="store_true", help="one problem, one seed, two methods")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.fast:
        fast(options.results if options.results != RESULTS else Path("runs/compute_to_target"))
        return
    chosen = [] if options.report else [p for p in PROBLEMS if p.name in options.only]
    for problem in runnable(chosen):
        for kind in options.setting or ("central", "federated"):
            federated = kind == "federated"
            file = options.results / f"{problem.name}_{kind}.jsonl"
            which = settings(
                problem, federated=federated, alphas=options.alpha, local_steps=options.steps
            )
            methods = [
                method
                for method in (FEDERATED if federated else CENTRAL)
                if method.name in options.methods and method.races_on(problem.name)
            ]
            race_all(Results(file), problem, which, methods)
    report.write(options.results)


def fast(folder: Path) -> None:
    """The decoder, MeZO and FedSPZO at rates known to work, one seed."""
    decoder = next(problem for problem in PROBLEMS if problem.name == "decoder")
    problem = replace(decoder, budget=300, accuracies=(0.8,), losses=(0.5,), tests=100)
    methods = [method for method in CENTRAL if method.name in (BASELINE, "FedSPZO")]
    loaded = load(problem)
    results = Results(folder / "fast.jsonl")
    for method in methods:
        run = results.get(loaded, Setting(), method, 2.0**method.first, 0)
        point = run.cost(accuracy=problem.accuracies[-1])
        cost = f"{point.forwards:.0f} forward passes" if point else f"not reached ({run.ended})"
        print(f"{method.name}: accuracy {problem.accuracies[-1]:.0%} after {cost}")


if __name__ == "__main__":
    main()

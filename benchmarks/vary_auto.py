"""How much each constant of `lr="auto"` matters: training with it halved, and doubled.

    python benchmarks/vary_auto.py                  # everything: an hour; resumes
    python benchmarks/vary_auto.py --only decoder   # some of the problems
    python benchmarks/vary_auto.py --report         # the table of what there is

`ablate_auto.py` tells what each mechanism is worth. This tells how far its constant may be from the
one that was chosen. A decay is varied by the length of its memory, 1 / (1 - decay).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from ablate_auto import SEEDS, Patch, Variant, runs
from targets.adverse import ADVERSE
from targets.problems import PROBLEMS as RACED
from targets.problems import runnable
from targets.runs import Results, Setting

from fedspzo.auto_lr import block_statistics, central, constants, loss_monitor, newton, rates

FOLDER = Path(__file__).parent / "results/vary_auto"
PASSES = {
    "decoder": 100,
    "minilm": 150,
    "decoder_pairs": 400,
    "decoder_ones": 400,
    "decoder_lora": 100,
}
PROBLEMS = [problem for problem in (*RACED, *ADVERSE) if problem.name in PASSES]
MODULES = (block_statistics, central, loss_monitor, newton, rates)
WAYS_BACK = ("SLACK", "EARLY_SLACK", "DEVIATIONS", "LOST_STEPS", "MEMORY", "HALVE")
VARIED = (
    "LEARNING_TURNS",
    "TURN_DECAY",
    "LEAD_STEPS",
    "LONGEST_INTERVAL",
    "START",
    "SIZE",
    "SIZE_LAST",
    "CURVATURE",
    "NEWTON",
    "STEADY_TURNS",
    "FALL_POWER",
    *WAYS_BACK,
)
"""Every constant."""
VARIED_ON = {"decoder_ones": ("LEARNING_TURNS", *WAYS_BACK)}
"""Where training diverges, those of the ways back alone."""
AS_IT_IS = Variant("as it is")
FACTORS = {"halved": 0.5, "doubled": 2.0}


def times(name: str, factor: float) -> float:
    """A constant's value times a factor; of a decay, that of its memory."""
    value = getattr(constants, name)
    if name.endswith("_DECAY"):
        return 1 - (1 - value) / factor
    return type(value)(value * factor)


def variant(name: str, how: str) -> Variant:
    """`lr="auto"` with a constant halved or doubled, wherever it is read."""
    value = times(name, FACTORS[how])
    patches: list[Patch] = [(module, name, value) for module in MODULES if hasattr(module, name)]
    return Variant(f"{name} {how}", patches)


def report() -> str:
    """The table: by how much the loss is higher with each constant halved, and doubled."""
    lines = [
        '# How much each constant of `lr="auto"` matters',
        "",
        "`python benchmarks/vary_auto.py`: by how much the loss on examples never trained on is"
        " higher after the same forward passes with one constant halved, and doubled (of a decay,"
        f" the length of its memory): the median of seeds {SEEDS[0]} to {SEEDS[-1]}, and their"
        " range. Below 0, the other value is better.",
        "",
    ]
    titles = []
    found: dict[str, dict[str, dict[int, float]]] = {}
    for problem in PROBLEMS:
        results = Results(FOLDER / f"{problem.name}_central.jsonl")
        ends: dict[str, dict[int, float]] = {}
        for run in results.runs.values():
            ends.setdefault(run.method, {})[run.seed] = run.curve[-1].loss
        if AS_IT_IS.name in ends:
            found[problem.name] = ends
            machines = "; ".join(sorted({run.machine for run in results.runs.values()}))
            loss = statistics.median(ends[AS_IT_IS.name].values())
            passes = PASSES[problem.name]
            titles.append(f"* {problem.title}: {passes} passes, loss {loss:.3f}. {machines}")
    columns = [f"{name}, {how}" for name in found for how in FACTORS]
    lines += [*titles, "", "| constant | value | " + " | ".join(columns) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(columns))
    for name in VARIED:
        cells = [_worse(ends, f"{name} {how}") for ends in found.values() for how in FACTORS]
        lines.append(f"| {name} | {getattr(constants, name):g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _worse(ends: dict[str, dict[int, float]], method: str) -> str:
    whole = ends[AS_IT_IS.name]
    by = sorted(loss - whole[seed] for seed, loss in ends.get(method, {}).items() if seed in whole)
    if not by:
        return "not measured"
    return f"{statistics.median(by):+.3f} ({by[0]:+.3f} to {by[-1]:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(PASSES), nargs="+", default=list(PASSES))
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [] if options.report else [p for p in PROBLEMS if p.name in options.only]
    for problem in runnable(chosen):
        names = VARIED_ON.get(problem.name, VARIED)
        every = [AS_IT_IS, *(variant(name, how) for name in names for how in FACTORS)]
        found = Results(FOLDER / f"{problem.name}_central.jsonl")
        runs(problem, Setting(), PASSES[problem.name], every, found)
    FOLDER.with_suffix(".md").write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The tables and the plot of the runs there are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from .methods import BASELINE, CENTRAL, FEDERATED
from .problems import PROBLEMS, Problem
from .runs import Point, Results, Run, seeds_of, settings

REFERENCES = (BASELINE, FEDERATED[0].name)


@dataclass(frozen=True)
class Row:
    """A method in a setting: its runs on the seeds that were not tuned on."""

    method: str
    runs: list[Run]

    def costs(self, *, accuracy: float = 0.0, loss: float = math.inf) -> list[Point | None]:
        return [run.cost(accuracy=accuracy, loss=loss) for run in self.runs]


def write(folder: Path) -> None:
    """Write FOLDER.md and, with central runs, FOLDER.png from the files in `folder`."""
    lines = [
        "# Computation to a target",
        "",
        "`python benchmarks/compute_to_target.py`, which tells how learning rates were tuned.",
        "",
        "Full-forward equivalents, of all clients together, until a target is met at two"
        " evaluations in a row: median (range) over the seeds that got there; 'k of n' where not"
        " all did. 'x' is how many times less the median is than the first line's, of all seeds;"
        " 'over' where that one's median seed did not get there within its budget. In the figure"
        " a run that has ended, as most do at their targets, stays where it was.",
        "",
    ]
    panels: list[tuple[Problem, list[Row]]] = []
    for problem in PROBLEMS:
        for federated in (False, True):
            kind = "federated" if federated else "central"
            results = Results(folder / f"{problem.name}_{kind}.jsonl")
            for setting in settings(problem, federated=federated):
                order = [method.name for method in (FEDERATED if federated else CENTRAL)]
                tuning, seeds = seeds_of(problem, setting)
                rows = _rows(results, problem.name, setting.name, order, seeds)
                if rows:
                    lines += [
                        f"## {problem.title}: {setting.name}",
                        "",
                        f"Seeds {seeds[0]} to {seeds[-1]}; rates tuned on {tuning[0]} to"
                        f" {tuning[-1]}, but for those marked auto. On"
                        f" {'; '.join(sorted({run.machine for row in rows for run in row.runs}))}.",
                        "",
                        *_table(problem, rows),
                        "",
                    ]
                    if not federated:
                        panels.append((problem, rows))
    folder.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    if panels:
        _plot(folder.with_suffix(".png"), panels)
    print(folder.with_suffix(".md"))


def _rows(
    results: Results, problem: str, setting: str, order: Sequence[str], seeds: Sequence[int]
) -> list[Row]:
    rows = []
    for name in order:
        runs = [
            run
            for run in results.runs.values()
            if (run.problem, run.setting, run.method) == (problem, setting, name)
            and run.seed in seeds
        ]
        if len(runs) == len(seeds):  # else its race is not over
            rows.append(Row(name, runs))
    return rows


def _table(problem: Problem, rows: Sequence[Row]) -> list[str]:
    targets: list[tuple[str, dict[str, float]]] = [
        *((f"{accuracy:.0%}", {"accuracy": accuracy}) for accuracy in problem.accuracies),
        *((f"loss {loss:g}", {"loss": loss}) for loss in problem.losses[-1:]),
    ]
    federated = rows[0].runs[0].setting != "central"
    reference = next((row for row in rows if row.method in REFERENCES), None)
    head = ["method", "lr", *(name for name, _ in targets), "best accuracy", "diverged"]
    head += ["kB up", "kB down"] if federated else ["s"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    last = targets[len(problem.accuracies) - 1][1]
    for row in rows:
        rate = row.runs[0].lr
        cells = [row.method, "auto" if "auto" in row.method else f"2^{math.log2(rate):g}"]
        for _, target in targets:
            base = _median(reference.costs(**target)) if reference else None
            cells.append(_cost(row.costs(**target), base))
        best = [max(point.accuracy for point in run.curve) for run in row.runs]
        cells.append(f"{statistics.median(best):.1%}")
        lost = sum(run.ended == "diverged" for run in row.runs)
        cells.append(f"{lost} of {len(row.runs)}" if lost else "")
        ends = [
            point or run.curve[-1] for point, run in zip(row.costs(**last), row.runs, strict=True)
        ]
        if federated:
            cells += [
                f"{statistics.median(getattr(end, name) for end in ends) / 1e3:.1f}"
                for name in ("bytes_up", "bytes_down")
            ]
        else:
            cells.append(f"{statistics.median(end.seconds for end in ends):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    what = "Bytes" if federated else "Seconds (several runs shared the machine)"
    lines += ["", f"{what}: to the last accuracy, or to the end where it was not reached."]
    return lines


def _median(points: Sequence[Point | None]) -> float:
    """The median cost; infinite where the median seed did not get there."""
    return statistics.median_high([point.forwards if point else math.inf for point in points])


def _cost(points: Sequence[Point | None], base: float | None) -> str:
    """A cell; `base` is the first line's cost, None where its race is not over."""
    reached = [point.forwards for point in points if point]
    if not reached:
        return "not reached"
    median = _median(points)
    text = f"{statistics.median_high(reached):.0f} ({min(reached):.0f} to {max(reached):.0f})"
    if len(reached) < len(points):
        text += f", {len(reached)} of {len(points)}"
    if base is None or math.isinf(median):
        return text
    return text + (", over" if math.isinf(base) else f", {base / median:.1f}x")


def _plot(path: Path, panels: Sequence[tuple[Problem, list[Row]]]) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 4.4), layout="constrained", squeeze=False
    )
    names = [method.name for method in CENTRAL]
    for axis, (problem, rows) in zip(axes[0], panels, strict=True):
        for row in rows:
            ours = row.method.startswith("FedSPZO")
            costs, accuracies = _curves(row.runs)
            axis.plot(
                costs,
                np.median(accuracies, axis=0),
                color=mpl.colormaps["tab20"](names.index(row.method)),
                linewidth=2.5 if ours else 1,
                label=row.method,
            )
        axis.set_xscale("log")
        axis.axhline(problem.accuracies[-1], color="#8a8a8a", linestyle=":")
        axis.set_title(problem.name, loc="left")
        axis.set_xlabel("full-forward equivalents")
    axes[0][0].set_ylabel("accuracy on examples never trained on,\nmedian of the seeds")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), fontsize=7, ncol=5, loc="outside lower center"
    )
    figure.savefig(path, dpi=110)


def _curves(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies, (runs, costs), where a run that has ended stays as it was evaluated last."""
    last = max(run.curve[-1].forwards for run in runs)
    costs = np.geomspace(10, max(last, 11), 200)
    return costs, np.array(
        [
            np.interp(costs, [p.forwards for p in run.curve], [p.accuracy for p in run.curve])
            for run in runs
        ]
    )

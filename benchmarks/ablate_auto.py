"""What each mechanism of `lr="auto"` is worth: training with one of them switched off at a time.

    python benchmarks/ablate_auto.py                     # everything: hours; resumes
    python benchmarks/ablate_auto.py --only decoder      # some of the problems
    python benchmarks/ablate_auto.py --report            # the table of what there is

The problems are those of `compute_to_target.py`, with other seeds, and the decoder where training
goes wrong more easily (`targets/adverse.py`): what bounds the harm of a step shows its worth there.
All runs spend the same passes, whether they have reached anything or not.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from targets.adverse import ADVERSE
from targets.methods import Method
from targets.problems import PROBLEMS as RACED
from targets.problems import Problem, load, runnable
from targets.runs import Results, Run, Setting
from tqdm.auto import tqdm

from fedspzo.auto_lr import block_statistics, central, constants, loss_monitor, newton, rates
from fedspzo.auto_lr.constants import START
from fedspzo.auto_lr.loss_monitor import LossMonitor, Verdict
from fedspzo.estimators import defaults
from fedspzo.optim import spzo, step

FOLDER = Path(__file__).parent / "results/ablate_auto"
EARLIER = FOLDER / "earlier"
"""Rows of what was removed, and of all of it as it was then."""
SEEDS = range(200, 203)
PROBLEMS = (*RACED, *ADVERSE)
PASSES = {
    "reviews": 120,
    "sentences": 120,
    "decoder": 100,
    "encoder": 100,
    "minilm": 150,
    "decoder_pairs": 400,
    "decoder_ones": 400,
    "decoder_bfloat16": 100,
    "decoder_wrong_labels": 100,
    "decoder_confident": 100,
    "decoder_lora": 100,
}
FEDERATED_PASSES = {"reviews": 160, "sentences": 160, "decoder": 480, "encoder": 480, "minilm": 480}
LONG_PASSES = {"minilm": 1000, "decoder_pairs": 2000, "reviews": 500}
"""Of the runs that show what falling rates are for."""
LONG_VARIANTS = ("all of it", "rates do not fall", "rates fall by the square root")
FEDERATION = Setting(1.0, 5)

Patch = tuple[object, str, object]


@dataclass(frozen=True)
class Variant:
    """`lr="auto"` with something switched off.

    Attributes:
        name: for people, and the key of its results.
        patches: what is switched off: (module or class, attribute, value).
        settings: of the optimizer, besides `lr`.
        central, federated: where it makes a difference.
        gone: it was removed; its rows stay.
    """

    name: str
    patches: Sequence[Patch] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    central: bool = True
    federated: bool = True
    gone: bool = False

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        with ExitStack() as patches:
            for target, name, value in self.patches:
                patches.enter_context(patch.object(target, name, value))
            yield


def _never_diverged(observe: Callable[[LossMonitor, float], Verdict]) -> Callable[..., Verdict]:
    def watched(monitor: LossMonitor, loss: float) -> Verdict:
        verdict = observe(monitor, loss)
        return "near" if verdict == "diverged" else verdict

    return watched


def _later_blocks(policy: central.CentralPolicy, counts: Sequence[int]) -> tuple[int, ...]:
    learns = [stats.is_learning for stats in policy.blocks] or [True] * len(counts)
    return tuple(block for block, count in enumerate(counts) if block and count and learns[block])


NO_NEWTON = [(module, "may_take_newton_steps", lambda *_: False) for module in (spzo, step)]

VARIANTS = (
    Variant("all of it"),
    Variant(
        "every block in every step",
        [(central, "LEAD_STEPS", 0), (central, "LONGEST_INTERVAL", 1)],
        federated=False,
    ),
    Variant("all blocks from the first step on", [(central, "LEAD_STEPS", 0)], federated=False),
    Variant("no longest wait for a turn", [(central, "LONGEST_INTERVAL", 10**9)], federated=False),
    Variant("turns: the latest alone", [(block_statistics, "TURN_DECAY", 0.0)]),
    Variant("turns: the first alone", [(block_statistics, "TURN_DECAY", 1.0)]),
    Variant("no bound on size", [(rates, size, math.inf) for size in ("SIZE", "SIZE_LAST")]),
    Variant("one bound on size", [(rates, "SIZE_LAST", constants.SIZE)]),
    Variant("curvature: the stable rate", [(rates, "CURVATURE", math.inf)]),
    Variant(
        "the first block's curvature not measured",
        [(central.CentralPolicy, "learning", _later_blocks)],
    ),
    Variant("no clipping", gone=True),
    Variant("rates do not fall", [(rates, "STEADY_TURNS", 10**9)]),
    Variant("rates fall by the square root", [(rates, "FALL_POWER", 0.5)]),
    Variant("no trust ratio", gone=True),
    Variant("Newton: steps not halved", gone=True),
    Variant("no loss monitor", [(LossMonitor, "observe", _never_diverged(LossMonitor.observe))]),
    Variant("loss monitor: no allowance for chance", [(loss_monitor, "DEVIATIONS", 0.0)]),
    Variant("loss monitor: no share of the best loss", gone=True),
    Variant("loss monitor: no more at first", [(loss_monitor, "EARLY_SLACK", constants.SLACK)]),
    Variant("no Newton steps", NO_NEWTON, {"newton": False}),
    Variant(
        "no Newton steps, one bound on size",
        [*NO_NEWTON, (rates, "SIZE_LAST", constants.SIZE)],
        {"newton": False},
    ),
    Variant(
        "Newton: one product",
        [(module, "NEWTON_PRODUCTS", 1) for module in (newton, defaults)],
    ),
    Variant("Newton: half steps", [(rates, "NEWTON", 0.5)]),
    Variant("Newton: whole steps", [(rates, "NEWTON", 1.0)]),
    Variant("Newton: no least damping", gone=True),
    Variant("Newton: a longest step of 1, not 4", gone=True),
    Variant("Newton: no longest step", gone=True),
    Variant("signs in place of normal noise", settings={"stream": "rademacher-v1"}),
    Variant("no bound on worth", gone=True),
    Variant("promises of any size count", gone=True),
)


KINDS = {
    "central": (Setting(), PASSES),
    "federated": (FEDERATION, FEDERATED_PASSES),
    "long": (Setting(), LONG_PASSES),
}
"""By its name, which is in those of the result files: the setting and each problem's passes."""


def runs(
    problem: Problem, setting: Setting, passes: int, variants: Sequence[Variant], found: Results
) -> None:
    """Make the runs that are missing in `found`."""
    # evaluated half way and at the end
    loaded = load(replace(problem.endless(), every=passes // 2))
    variants = [variant for variant in variants if not variant.gone]
    for seed in SEEDS:
        for variant in tqdm(variants, desc=f"{problem.name}, {setting.name}, seed {seed}"):
            method = Method(variant.name, "auto", {"lr": "auto", **variant.settings})
            with variant.switched_off():
                found.get(loaded, setting, method, START, seed, passes)


def variants_of(kind: str) -> list[Variant]:
    """Those that make a difference there, and are run."""
    if kind == "long":
        return [v for v in VARIANTS if v.name in LONG_VARIANTS]
    return [v for v in VARIANTS if (v.federated if kind == "federated" else v.central)]


def report() -> str:
    """The table: where each variant ends, and by how much that differs from all of it."""
    lines = [
        '# What each mechanism of `lr="auto"` is worth',
        "",
        "`python benchmarks/ablate_auto.py`: loss and accuracy on examples never trained on, after"
        " the same forward passes with one mechanism switched off; the median of the seeds. 'Worse"
        " by': the median over the seeds of the difference in loss to all of it, and its range.",
        "",
        "A mechanism that was removed since was part of all of it in the table where it stands.",
    ]
    for folder in (FOLDER, EARLIER):
        when = ", by an earlier version" if folder == EARLIER else ""
        for problem in PROBLEMS:
            for kind, (setting, passes_of) in KINDS.items():
                found = Results(folder / f"{problem.name}_{kind}.jsonl")
                rows = list(_rows(problem, kind, found, earlier=folder == EARLIER))
                if len(rows) > 1:
                    machines = sorted({run.machine for run in found.runs.values()})
                    passes = passes_of[problem.name]
                    title = f"## {problem.title}: {setting.name}, {passes} passes{when}"
                    lines += ["", title, ""]
                    lines += [f"Seeds {SEEDS[0]} to {SEEDS[-1]}; {'; '.join(machines)}.", ""]
                    lines += [
                        "| | seeds | accuracy | loss | worse by |",
                        "| --- | --- | --- | --- | --- |",
                    ]
                    lines += rows
    return "\n".join(lines) + "\n"


def _rows(problem: Problem, kind: str, found: Results, *, earlier: bool) -> Iterator[str]:
    setting, _ = KINDS[kind]

    def of(variant: Variant) -> dict[int, Run]:
        keys = {seed: (problem.name, setting.name, variant.name, START, seed) for seed in SEEDS}
        return {seed: found.runs[key] for seed, key in keys.items() if key in found.runs}

    first, *others = variants_of(kind)
    whole = of(first)
    shown = [variant for variant in others if variant.gone or not earlier]
    for variant in (first, *shown):
        ends = {seed: run.curve[-1] for seed, run in of(variant).items()}
        if not ends:
            continue
        worse = sorted(
            end.loss - whole[seed].curve[-1].loss for seed, end in ends.items() if seed in whole
        )
        accuracy = statistics.median(end.accuracy for end in ends.values())
        loss = statistics.median(end.loss for end in ends.values())
        difference = (
            f"{statistics.median(worse):+.3f} ({worse[0]:+.3f} to {worse[-1]:+.3f})"
            if worse
            else ""
        )
        name = f"{variant.name} (removed since)" if variant.gone else variant.name
        yield f"| {name} | {len(ends)} | {accuracy:.1%} | {loss:.3f} | {difference} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="problems")
    parser.add_argument("--setting", choices=KINDS, nargs="+", default=list(KINDS))
    every = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", choices=every, nargs="+", default=every, metavar="NAME")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [] if options.report else [p for p in PROBLEMS if p.name in options.only]
    for problem in runnable(chosen):
        for kind in options.setting:
            if problem.name in KINDS[kind][1]:
                variants = [v for v in variants_of(kind) if v.name in options.variants]
                setting, passes = KINDS[kind]
                found = Results(FOLDER / f"{problem.name}_{kind}.jsonl")
                runs(problem, setting, passes[problem.name], variants, found)
    FOLDER.with_suffix(".md").write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Where training of a real language model ends, beside first-order methods: on the test split.

    python benchmarks/where_it_ends.py            # hours; resumes
    python benchmarks/where_it_ends.py --report   # the tables of what there is

SmolLM2-135M on the reviews, batches of 16. Every run is a process of its own, so that its peak
memory is its own. Passes count a step with a backward pass as three. The test split is looked at
once, at a run's end; on the way there the validation split is, in runs of `LONG` passes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from targets.methods import CENTRAL
from targets.problems import PROBLEMS, REVIEWS, Loaded, load
from targets.runs import here
from torch import nn

from fedspzo import Blocks
from fedspzo.app import config as configuration
from fedspzo.app.data import read_splits
from fedspzo.baselines.fedavg import STEP_FORWARDS
from fedspzo.baselines.lora import adapted
from fedspzo.federated.optimizers import spzo
from fedspzo.federated.partition import draw
from fedspzo.seeds import derive

RESULTS = Path(__file__).parent / "results/where_it_ends.jsonl"

LONG = 2000
"""Full forward passes of the long runs."""

EVERY = 100
"""Full forward passes between a long run's evaluations."""

SHOWN = (100, 200, 500, 1000, 1500, 2000)
"""The passes after which the report shows a long run."""

ACCURACY, LOSS = 0.80, 0.40
"""What a long run has to reach on the validation split."""

Step = Callable[[Any], float]
"""Takes a step on a batch, and returns its cost in forward passes."""


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: for people, and the key of its results.
        lr: the learning rate; None: found by the method.
        passes: full forward passes of a run.
        seeds: number of seeds.
        start: makes the model and the step.
    """

    name: str
    lr: float | None
    passes: int
    seeds: int
    start: Callable[[Loaded, float | None, int], tuple[nn.Module, Step]]


@dataclass(frozen=True)
class End:
    """Where a run ended: costs, and the test split's loss and accuracy.

    Attributes:
        budget: the full forward passes that the run was given.
        curve: passes, accuracy and loss of the evaluations on the validation split.
        peak_mib: the process' peak memory in training, before its first evaluation, in MiB.
        base_mib: the same before the first step, with the model loaded and one batch evaluated.
    """

    method: str
    lr: float | None
    seed: int
    budget: int
    passes: float
    seconds: float
    peak_mib: float
    base_mib: float
    loss: float
    accuracy: float
    machine: str
    curve: list[tuple[float, float, float]] = field(default_factory=list)


def zeroth_order(name: str) -> Callable[[Loaded, float | None, int], tuple[nn.Module, Step]]:
    """A method of `compute_to_target.py`."""
    method = next(method for method in CENTRAL if method.name == name)

    def start(loaded: Loaded, lr: float | None, seed: int) -> tuple[nn.Module, Step]:
        blocks = loaded.split(method.cut)
        optimizer = spzo(blocks, method.optimizer(lr or 1.0), seed=seed)

        def step(batch: Any) -> float:
            before = optimizer.forwards
            optimizer.step(lambda: loaded.task.loss(blocks.model, batch))
            return optimizer.forwards - before

        return blocks.model, step

    return start


def first_order(*, lora: bool) -> Callable[[Loaded, float | None, int], tuple[nn.Module, Step]]:
    """AdamW on all weights, or on LoRA adapters with activations computed again (checkpointing)."""

    def start(loaded: Loaded, lr: float | None, seed: int) -> tuple[nn.Module, Step]:
        assert lr is not None
        model = loaded.fresh()
        if lora:
            model = adapted(Blocks.single(model), seed=seed).model
            model.enable_input_require_grads()  # type: ignore[operator]
            model.gradient_checkpointing_enable()  # type: ignore[operator]
            model.train()  # checkpoints are made in training mode; the model has no dropout
        adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)

        def step(batch: Any) -> float:
            with torch.enable_grad():
                loaded.task.loss(model, batch).backward()
            adamw.step()
            adamw.zero_grad()
            return STEP_FORWARDS + lora  # checkpointing runs the forward pass again

        return model, step

    return start


def untrained(loaded: Loaded, lr: float | None, seed: int) -> tuple[nn.Module, Step]:
    """The base model."""
    return loaded.fresh(), lambda batch: 0.0


METHODS = (
    Method("not trained", None, 0, 1, untrained),
    Method("FedSPZO, lr auto", None, 240, 2, zeroth_order("FedSPZO, lr auto")),
    Method("last block alone, lr auto", None, 240, 2, zeroth_order("last block alone, lr auto")),
    Method("AdamW, all weights", 2e-5, 180, 2, first_order(lora=False)),
    Method("LoRA, rank 8, checkpointing", 2e-4, 240, 2, first_order(lora=True)),
    Method("MeZO", 2.0**-15, 600, 2, zeroth_order("MeZO")),
    Method("FedSPZO, lr auto", None, LONG, 2, zeroth_order("FedSPZO, lr auto")),
    Method("MeZO, 4 one-sided", 2.0**-13, LONG, 2, zeroth_order("MeZO, 4 one-sided")),
    Method("MeZO", 2.0**-15, LONG, 2, zeroth_order("MeZO")),
)


def peak_mib() -> float:
    """The process' peak memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(method: Method, seed: int) -> End:
    """Train, then evaluate on the test split."""
    problem = next(problem for problem in PROBLEMS if problem.name == "reviews")
    loaded = load(problem)
    model, step = method.start(loaded, method.lr, seed)

    def batch(number: int) -> Any:
        chosen = draw(len(loaded.train), problem.batch, derive(seed, number))
        return loaded.task.collate([loaded.train[i] for i in chosen])

    with torch.no_grad():
        loaded.task.loss(model, batch(0))
    base = peak = peak_mib()
    passes, number, seconds = 0.0, 0, 0.0
    curve: list[tuple[float, float, float]] = []
    while passes < method.passes:
        begin = time.perf_counter()
        passes += step(batch(number))
        number += 1
        seconds += time.perf_counter() - begin
        if not curve:  # an evaluation's batches are larger
            peak = peak_mib()
        if method.passes == LONG and passes >= EVERY * (len(curve) + 1):
            found = loaded.evaluate(model)
            curve.append((round(passes, 1), found["accuracy"], found["loss"]))
    config = configuration.load(REVIEWS / "config.toml")
    test = loaded.task.encode(read_splits(config.data, config.task).test)
    found = loaded.task.evaluate(model.eval(), test)
    return End(
        method=method.name,
        lr=method.lr,
        seed=seed,
        budget=method.passes,
        passes=round(passes, 1),
        seconds=round(seconds, 1),
        peak_mib=round(peak),
        base_mib=round(base),
        loss=found["loss"],
        accuracy=found["accuracy"],
        machine=here(),
        curve=curve,
    )


def known() -> list[End]:
    """The runs so far."""
    if not RESULTS.exists():
        return []
    return [End(**json.loads(line)) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def report() -> str:
    """The table."""
    ends = known()
    lines = [
        "# Where training ends",
        "",
        "`python benchmarks/where_it_ends.py`: SmolLM2-135M on real movie reviews, float32, batches"
        " of 16; accuracy on the 512 test snippets, looked at once, at the end of each run. A step"
        " with a backward pass counts as three passes, with checkpointing as four. Memory: the peak"
        " of the process beyond that of a forward pass. One thread, beside other work. On"
        f" {'; '.join(sorted({end.machine for end in ends}))}.",
        "",
        "| method | lr | passes | test accuracy, seed by seed | loss | seconds | more memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        own = [end for end in ends if (end.method, end.budget) == (method.name, method.passes)]
        if own:
            lr = "auto" if method.lr is None and method.passes else f"{method.lr or 0:.2g}"
            accuracies = ", ".join(f"{end.accuracy:.1%}" for end in own)
            memory = statistics.median(end.peak_mib - end.base_mib for end in own)
            lines.append(
                f"| {method.name} | {lr} | {method.passes} | {accuracies} |"
                f" {statistics.median(end.loss for end in own):.3f} |"
                f" {statistics.median(end.seconds for end in own):.0f} | {memory:.0f} MiB |"
            )
    return "\n".join([*lines, *_on_the_way(ends)]) + "\n"


def _on_the_way(ends: list[End]) -> list[str]:
    """The table of the long runs' evaluations."""
    lines = [
        "",
        "## On the way there",
        "",
        f"Accuracy of the runs of {LONG} passes on the 256 validation snippets, which are looked at"
        f" every {EVERY} passes or soon after; the mean loss of the last five evaluations; and the"
        f" passes after which {ACCURACY:.0%}, and a loss of {LOSS:.2f}, hold at two evaluations in"
        " a row.",
        "",
        f"| method | seed | {' | '.join(f'after {passes}' for passes in SHOWN)} | best | loss |"
        f" passes to {ACCURACY:.0%} | to {LOSS:.2f} |",
        "| --- | --- |" + " --- |" * (len(SHOWN) + 4),
    ]
    for end in ends:
        if not end.curve:
            continue
        accuracies = [accuracy for _, accuracy, _ in end.curve]
        chosen = [accuracies[passes // EVERY - 1] for passes in SHOWN]
        cells = " | ".join(f"{accuracy:.1%}" for accuracy in (*chosen, max(accuracies)))
        loss = statistics.mean(loss for *_, loss in end.curve[-5:])
        right = _held(end, lambda accuracy, loss: accuracy >= ACCURACY)
        low = _held(end, lambda accuracy, loss: loss <= LOSS)
        lines.append(f"| {end.method} | {end.seed} | {cells} | {loss:.3f} | {right} | {low} |")
    return lines


def _held(end: End, met: Callable[[float, float], bool]) -> str:
    """The passes after which accuracy and loss are as wanted at two evaluations in a row."""
    for (passes, *now), (_, *then) in pairwise(end.curve):
        if met(*now) and met(*then):
            return f"{passes:.0f}"
    return "not reached"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted({method.name for method in METHODS})
    passes = sorted({method.passes for method in METHODS})
    parser.add_argument("--methods", choices=names, nargs="+", default=names)
    parser.add_argument("--passes", type=int, choices=passes, nargs="+", default=passes)
    parser.add_argument("--seed", type=int, help="one run of one method, as a line of JSON")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [
        method
        for method in METHODS
        if method.name in options.methods and method.passes in options.passes
    ]
    if options.seed is not None:
        print(json.dumps(asdict(run(chosen[0], options.seed))))
        return
    done = {(end.method, end.budget, end.seed) for end in known()}
    for seed in range(2):
        for method in chosen:
            key = (method.name, method.passes, seed)
            if options.report or seed >= method.seeds or key in done:
                continue
            own = ["--methods", method.name, "--passes", str(method.passes), "--seed", str(seed)]
            command = [sys.executable, __file__, *own]
            print(*key, flush=True)
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(line.splitlines()[-1] + "\n")
    RESULTS.with_suffix(".md").write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()

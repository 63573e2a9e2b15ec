"""What a step takes over its forward passes alone, on a real language model.

    python benchmarks/step_cost.py [--threads 2] [--steps 15] [--clock wall|cpu]

SmolLM2-135M and 16 of the reviews. Each step is timed between plain forward passes, as many before
it as after it, so that a machine that slows down meanwhile slows both; the table has the medians of
the steps. A step's time, over that of its forward passes, has four parts: the passes, 1; a Newton
step's recorded evaluations of the last block, which count as next to no pass; the kernels, which
make noise and add it; and what is left, the step's own time. Memory is the peak of torch's
allocations during the step over that during a forward pass, both with the weights. `--clock cpu`
takes the processor's time, for a machine that others use too. The results are written row by row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from memory import peak_bytes
from targets.problems import PROBLEMS, load
from torch import Tensor
from tqdm.auto import tqdm

from fedspzo import SPZO, Blocks, split
from fedspzo.evaluation.recording import Recording

RESULTS = Path(__file__).parent / "results/step_cost.md"
TWO_BLOCKS = {"perturbations": (1, 4)}
SIGNS = {"stream": "rademacher-v1"}
METHODS: tuple[tuple[str, str | None, dict[str, Any]], ...] = (
    ("MeZO", None, {"sides": "two"}),
    ("MeZO, signs", None, {"sides": "two", **SIGNS}),
    ("MeZO, one-sided, signs", None, {"sides": "one", **SIGNS}),
    ("anchored, 1 and 4 directions, last quarter", "quarter", {}),
    ("anchored, signs", "quarter", SIGNS),
    ('`lr="auto"`, a Newton step of the last block', "auto", {"lr": "auto"}),
)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Clock = Callable[[], float]


def seconds(run: Callable[[], object], clock: Clock) -> float:
    """The time that `run` takes."""
    start = clock()
    run()
    return clock() - start


class Timed:
    """A function in its place in a module or class, which adds up the time of its calls.

    Attributes:
        spent: the time of all calls, in seconds.
    """

    def __init__(self, place: Any, name: str, clock: Clock) -> None:
        self.function, self.clock, self.spent = getattr(place, name), clock, 0.0
        setattr(place, name, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)

    def __get__(self, instance: object, _: type | None = None) -> Callable[..., Any]:
        return partial(self, instance)

    def __call__(self, *arguments: Any) -> Any:
        start = self.clock()
        result = self.function(*arguments)
        self.spent += self.clock() - start
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    problem = next(problem for problem in PROBLEMS if problem.name == "reviews")
    if missing := problem.needs():
        raise SystemExit(f"step_cost: it needs {missing}")
    loaded = load(problem)
    ops = ("perturb_", "perturb_out", "perturb_rows")
    kernels = [Timed(torch.ops.fedspzo, name, clock) for name in ops]
    recorded = Timed(Recording, "evaluated", clock)
    batch = loaded.task.collate(loaded.train[:16])
    rows, length = batch["input_ids"].shape
    lines = [
        "# What a step takes over its forward passes alone",
        "",
        f"`python benchmarks/step_cost.py`: SmolLM2-135M, {rows} reviews of up to {length} tokens,"
        f" {options.threads} threads, medians of {options.steps} steps, clock: {options.clock}. On"
        f" {machine()}, torch {torch.__version__}. In units of the step's forward passes alone.",
        "",
        "| method | dtype | evaluation | passes a step | seconds | a step | recorded | kernels"
        " | its own time | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for name, at, settings in METHODS:
            for evaluation in ("in_place", "layerwise"):
                model = loaded.fresh().to(dtype).eval()
                layers = model.config.num_hidden_layers
                cut = layers * 3 // 4 if at == "quarter" else at
                blocks = Blocks.single(model) if cut is None else split(model, cut)
                given = TWO_BLOCKS if at == "quarter" else {}
                optimizer = SPZO(blocks, **{"lr": 1e-7, **settings}, **given, evaluation=evaluation)

                def loss(model: Any = blocks.model) -> Tensor:
                    return loaded.task.loss(model, batch)

                kind = str(dtype).removeprefix("torch.")
                what = f"{name}, {evaluation}, {kind}"
                row = measure(optimizer, loss, recorded, kernels, clock, options.steps, what)
                lines.append(f"| {name} | {kind} | {evaluation} | {row} |")
                print(lines[-1], flush=True)
                RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.no_grad()
def measure(
    optimizer: SPZO,
    loss: Callable[[], Tensor],
    recorded: Timed,
    kernels: Sequence[Timed],
    clock: Clock,
    steps: int,
    what: str,
) -> str:
    """A row of the table, from its passes on."""
    for _ in range(2):
        optimizer.step(loss)
    found = []
    assert optimizer.last_step is not None
    passes = optimizer.last_step.forwards
    count = max(1, round(passes / 2))

    def forward() -> float:
        return seconds(lambda: [loss() for _ in range(count)], clock) / count

    for _ in tqdm(range(steps), desc=what):
        before = forward()
        for timed in (recorded, *kernels):
            timed.spent = 0.0
        step = seconds(lambda: optimizer.step(loss), clock)
        passes = optimizer.last_step.forwards
        alone = passes * (before + forward()) / 2
        parts = (recorded.spent / alone, sum(op.spent for op in kernels) / alone)
        found.append((passes, step, step / alone, *parts, step / alone - 1 - sum(parts)))
    weights = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    memory = (weights + peak_bytes(lambda: optimizer.step(loss))) / (weights + peak_bytes(loss))
    columns = [statistics.median(column) for column in zip(*found, strict=True)]
    passes, step, *shares = columns
    return " | ".join(
        (f"{passes:.2f}", f"{step:.2f}", *map("{:.3f}".format, shares), f"{memory:.3f}")
    )


if __name__ == "__main__":
    main()

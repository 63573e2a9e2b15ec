"""What a step takes over its forward passes alone, on a real language model.

    python benchmarks/step_cost.py [--threads 2] [--pairs 7]

SmolLM2-135M and 16 of the reviews. Each pair is a step, and as many plain forward passes as it
counts, timed one after the other; the table has the median of the pairs' ratios. Memory is the peak
of torch's allocations during the step over that during a forward pass, both with the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from memory import peak_bytes
from targets.problems import PROBLEMS, load
from torch import Tensor
from tqdm.auto import tqdm

from fedspzo import SPZO, Blocks, split

RESULTS = Path(__file__).parent / "results/step_cost.md"
TWO_BLOCKS = {"perturbations": (1, 4), "cost_shares": (0.25,)}
METHODS: tuple[tuple[str, str | None, dict[str, Any]], ...] = (
    ("MeZO", None, {"sides": "two"}),
    ("anchored, 1 and 4 directions, last quarter", "quarter", {}),
    ('`lr="auto"`, a Newton step of the last block', "auto", {"lr": "auto"}),
)


def seconds(run: Callable[[], object]) -> float:
    """The time that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    problem = next(problem for problem in PROBLEMS if problem.name == "reviews")
    if missing := problem.needs():
        raise SystemExit(f"step_cost: it needs {missing}")
    loaded = load(problem)
    batch = loaded.task.collate(loaded.train[:16])
    rows, length = batch["input_ids"].shape
    lines = [
        "# What a step takes over its forward passes alone",
        "",
        f"`python benchmarks/step_cost.py`: SmolLM2-135M, {rows} reviews of up to {length} tokens,"
        f" {options.threads} threads, medians of {options.pairs} pairs. On {machine()}, torch"
        f" {torch.__version__}.",
        "",
        "| method | dtype | evaluation | passes a step | seconds | over its passes | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
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

                row = measure(optimizer, loss, options.pairs, f"{name}, {evaluation}, {dtype}")
                kind = str(dtype).removeprefix("torch.")
                lines.append(f"| {name} | {kind} | {evaluation} | {row} |")
                print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.no_grad()
def measure(optimizer: SPZO, loss: Callable[[], Tensor], pairs: int, what: str) -> str:
    """A row of the table, from its passes on."""
    for _ in range(2):
        optimizer.step(loss)
    ratios, steps, passes = [], [], []
    for _ in tqdm(range(pairs), desc=what):
        before = optimizer.forwards
        step = seconds(lambda: optimizer.step(loss))
        passes.append(optimizer.forwards - before)
        count = max(1, round(passes[-1]))
        forward = seconds(lambda count=count: [loss() for _ in range(count)]) / count
        steps.append(step)
        ratios.append(step / (forward * passes[-1]))
    weights = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    memory = (weights + peak_bytes(lambda: optimizer.step(loss))) / (weights + peak_bytes(loss))
    return (
        f"{statistics.median(passes):.2f} | {statistics.median(steps):.2f} |"
        f" {statistics.median(ratios):.2f} | {memory:.3f} |"
    ).rstrip(" |")


if __name__ == "__main__":
    main()

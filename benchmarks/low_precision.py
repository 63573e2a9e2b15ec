"""What low precision does to perturbations, updates and training: numbers of docs/evaluation.md.

`python benchmarks/low_precision.py`; half a minute. Weights are normal with deviation 0.02, as of a
linear layer of a language model; a LayerNorm's are 1.

`python benchmarks/low_precision.py --demo` trains the demo's model at a low learning rate instead:
in float32, in bfloat16, and in bfloat16 with updates rounded to nearest; some minutes.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial

import torch
from machine import machine

from fedspzo import SPZO, split
from fedspzo.app import config as configuration
from fedspzo.app import models
from fedspzo.app.commands.run import DEMO_CONFIG
from fedspzo.app.data import read_splits
from fedspzo.evaluation.in_place import Rounding
from fedspzo_kernels import noise, perturb_

ELEMENTS, CYCLES, EPS = 1 << 18, 1000, 1e-3
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def drift(dtype: torch.dtype) -> float:
    """How far cycles of +eps, -2 eps, +eps in place move weights, in units of their rms."""
    start = (0.02 * noise(ELEMENTS, key=1, seed=1)).to(dtype)
    theta = start.clone()
    for cycle in range(CYCLES):
        for scale in (EPS, -2 * EPS, EPS):
            perturb_([theta], [2], [cycle], [scale])
    moved = theta.double() - start.double()
    return float(moved.square().mean().sqrt() / start.double().square().mean().sqrt())


def kept(coefficient: float, rounding: str) -> float:
    """The share of a bfloat16 update along z that arrives, on average over the elements."""
    start = (0.02 * noise(1 << 22, key=1, seed=1)).bfloat16()
    theta = start.clone()
    seed = 3 if rounding == "stochastic" else None
    perturb_([theta], [2], [5], [coefficient], rounding=rounding, rounding_seed=seed)  # type: ignore[arg-type]
    z = noise(1 << 22, key=2, seed=5).double()
    moved = theta.double() - start.double()
    return float((moved * z).sum() / (coefficient * z.square().sum()))


def unmoved() -> float:
    """The share of a bfloat16 LayerNorm's weights that a perturbation leaves where they are."""
    theta = torch.ones(ELEMENTS, dtype=torch.bfloat16)
    perturb_([theta], [2], [5], [EPS])
    return float((theta == 1).double().mean())


def demo(
    dtype: str, rounding: Rounding, *, lr: float, seed: int, steps: int
) -> tuple[float, float]:
    """The demo model's loss on held-out examples, before and after steps on its training data."""
    config = configuration.load(DEMO_CONFIG)
    config = replace(config, model=replace(config.model, dtype=dtype, device="cpu"))  # type: ignore[arg-type]
    splits = read_splits(config.data, config.task)
    model, task, _ = models.load(config, splits)
    train, test = task.encode(splits.train), task.encode(splits.test)
    batches = torch.Generator().manual_seed(seed)
    optimizer = SPZO(
        split(model, -1),
        (lr, 4 * lr),
        estimator="balanced",
        sides="two",
        eps=5e-3,
        perturbations=(1, 2),
        seed=seed,
        rounding=rounding,
    )
    before = task.evaluate(model, test)["loss"]
    for _ in range(steps):
        picks = torch.randint(len(train), (16,), generator=batches).tolist()
        batch = task.collate([train[i] for i in picks])
        optimizer.step(partial(task.loss, model, batch))
    return before, task.evaluate(model, test)["loss"]


def demo_table(lr: float, seeds: list[int], steps: int) -> None:
    """Print one row a seed: each way's loss after the same batches and directions."""
    ways: dict[str, tuple[str, Rounding]] = {
        "float32": ("float32", "nearest"),
        "bfloat16, stochastic": ("bfloat16", "stochastic"),
        "bfloat16, to nearest": ("bfloat16", "nearest"),
    }
    print(f"{machine()}; torch {torch.__version__}; {steps} steps of 16 examples, lr {lr:g}\n")
    print(f"| seed | before, float32 | {' | '.join(ways)} |")
    print("| --- | --- | --- | --- | --- |")
    table = []
    for seed in seeds:
        done = [demo(*way, lr=lr, seed=seed, steps=steps) for way in ways.values()]
        table.append([done[0][0], *(after for _, after in done)])
        print(f"| {seed} | {' | '.join(f'{x:.4f}' for x in table[-1])} |", flush=True)
    means = map(statistics.mean, zip(*table, strict=True))
    print(f"| mean | {' | '.join(f'{x:.4f}' for x in means)} |")


def arithmetic() -> None:
    """Print what rounding does to weights that are moved back and forth, or by small updates."""
    for dtype in DTYPES:
        print(f"{dtype}: {CYCLES} cycles move weights by {drift(dtype):.1e} of their rms")
    for coefficient in (1e-6, 1e-5):
        shares = {r: kept(coefficient, r) for r in ("nearest", "stochastic")}
        print(f"bfloat16 updates of {coefficient:g} z that arrive: {shares}")
    print(f"bfloat16 LayerNorm weights that eps = {EPS:g} does not move: {unmoved():.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-4, help="of block 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    if options.demo:
        torch.set_num_threads(1)
        demo_table(options.lr, options.seeds, options.steps)
    else:
        arithmetic()


if __name__ == "__main__":
    main()

"""What low precision does to perturbations, updates and training: numbers of docs/estimators.md.

`python benchmarks/low_precision.py`; half a minute. Weights are normal with deviation 0.02, as of a
linear layer of a language model; a LayerNorm's are 1.

`python benchmarks/low_precision.py --demo` trains the demo's model at low learning rates instead:
in float32, in bfloat16, and in bfloat16 with updates rounded to nearest; some minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from machine import machine

from fedspzo import config as configuration
from fedspzo.cli import DEMO_CONFIG
from fedspzo.data import read_splits
from fedspzo.experiment import run
from fedspzo.output import OutputFolder
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


def demo(dtype: str, rounding: str, scale: float, seed: int, rounds: int) -> tuple[float, float]:
    """The demo's loss on held-out examples before and after, at `scale` times its rates."""
    config = configuration.load(DEMO_CONFIG).with_overrides(output=None, seed=seed, rounds=rounds)
    optimizer = replace(
        config.optimizer,
        lr=scale * 4e-3,
        lr2=scale * 1.2e-2,
        perturbations=(1, 6),
        sides="two",
        eps=5e-3,
        rounding=rounding,  # type: ignore[arg-type]
        evaluation="layerwise",
    )
    model = replace(config.model, dtype=dtype)  # type: ignore[arg-type]
    output = replace(config.output, evaluate_every=rounds)
    config = replace(config, model=model, optimizer=optimizer, output=output, mezo=None)
    with tempfile.TemporaryDirectory() as folder:
        splits = read_splits(config.data, config.task)
        done = run(config, splits, OutputFolder(Path(folder)), quiet=True)
    return done["zero_shot_loss"], done["loss"]


def demo_table(scales: list[float], seeds: list[int], rounds: int) -> None:
    """Print one row a learning rate: each way's losses, seed by seed."""
    ways = {
        "float32": ("float32", "nearest"),
        "bfloat16": ("bfloat16", "stochastic"),
        "bfloat16, to nearest": ("bfloat16", "nearest"),
    }
    print(f"{machine()}; torch {torch.__version__}; {rounds} rounds, seeds {seeds}\n")
    print(f"| lr, lr of block 2 | before | {' | '.join(ways)} |")
    print("| --- | --- | --- | --- | --- |")
    for scale in scales:
        cells, before = [], 0.0
        for dtype, rounding in ways.values():
            losses = []
            for seed in seeds:
                first, last = demo(dtype, rounding, scale, seed, rounds)
                losses.append(last)
                before = before or first
            listed = ", ".join(f"{loss:.3f}" for loss in losses)
            cells.append(f"{statistics.mean(losses):.3f} ({listed})")
        rates = f"{scale * 4e-3:g}, {scale * 1.2e-2:g}"
        print(f"| {rates} | {before:.3f} | {' | '.join(cells)} |", flush=True)


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
    parser.add_argument("--scales", type=float, nargs="+", default=[1 / 4, 1 / 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if options.demo:
        demo_table(options.scales, options.seeds, options.rounds)
    else:
        arithmetic()


if __name__ == "__main__":
    main()

"""Gradient and curvature by kind of weight and layer: where zeroth order's computation pays.

    python benchmarks/block_statistics.py [--after STEPS]

For each group of weights: n, the squared norm of the mean gradient over batches; s, the mean
squared norm of one batch's gradient; T, the trace of the Hessian, by second differences along
random directions. A step of lr g z along one direction lowers the loss by lr n - lr^2 s T / 2 in
expectation, so by n^2 / (2 s T) at most: the gain. `--after`: measured after that many steps of
`lr="auto"` on the last block alone, which is the last norm and the verbalizers' rows.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import torch
from machine import machine
from targets.problems import PROBLEMS, Loaded, load
from torch import nn
from tqdm.auto import tqdm

from fedspzo import SPZO, Blocks
from fedspzo.federated.partition import draw
from fedspzo.seeds import derive
from fedspzo_kernels import Perturber, parameter_key

RESULTS = Path(__file__).parent / "results/block_statistics.md"
BATCHES, DIRECTIONS = 8, 12
EPS = 2e-3
"""Of each group's root mean square: large enough for second differences in float32."""

Named = list[tuple[str, nn.Parameter]]


def groups(model: nn.Module) -> dict[str, Named]:
    """The weights by kind and by sixths of the layers."""
    found: dict[str, Named] = {}
    layers = 1 + max(
        int(m[1])
        for name, _ in model.named_parameters()
        if (m := re.search(r"layers\.(\d+)", name))
    )
    for name, parameter in model.named_parameters():
        layer = re.search(r"layers\.(\d+)", name)
        if name.endswith("rows"):
            label = "verbalizers' rows"
        elif "norm" in name:
            label = "norms"
        elif layer is None:
            label = "embeddings"
        else:
            sixth = int(layer[1]) * 6 // layers
            kind = "attention" if "attn" in name else "mlp"
            label = f"{kind}, layers {sixth * layers // 6}-{(sixth + 1) * layers // 6 - 1}"
        found.setdefault(label, []).append((name, parameter))
    return found


def batches(loaded: Loaded, count: int) -> list[object]:
    """The batches of the first steps of a run with seed 0."""
    chosen = (draw(len(loaded.train), loaded.problem.batch, derive(0, n)) for n in range(count))
    return [loaded.task.collate([loaded.train[i] for i in some]) for some in chosen]


def gradient_norms(
    loaded: Loaded, model: nn.Module, parts: dict[str, Named]
) -> dict[str, tuple[float, float]]:
    """n and s of each group. Two halves of the batches make n free of their noise."""
    weights = [p for named in parts.values() for _, p in named]
    halves = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
    each = torch.zeros(len(weights))
    for number, batch in enumerate(tqdm(batches(loaded, BATCHES), desc="gradients")):
        found = torch.autograd.grad(loaded.task.loss(model, batch), weights, allow_unused=True)
        for i, gradient in enumerate(found):
            if gradient is not None:
                halves[number % 2][i] += gradient / (BATCHES // 2)
                each[i] += gradient.square().sum() / BATCHES
    mean = [float((a * b).sum()) for a, b in zip(*halves, strict=True)]
    numbers = iter(zip(mean, each.tolist(), strict=True))
    result = {}
    for label, named in parts.items():
        values = [next(numbers) for _ in named]
        result[label] = (sum(n for n, _ in values), sum(s for _, s in values))
    return result


@torch.no_grad()
def trace(loaded: Loaded, model: nn.Module, named: Named) -> tuple[float, float]:
    """The trace of a group's Hessian, and its standard error over directions."""
    tensors = [p.detach() for _, p in named]
    rms = math.sqrt(sum(float(t.square().sum()) for t in tensors) / sum(t.numel() for t in tensors))
    eps = EPS * rms
    perturber = Perturber(tensors, [parameter_key(name) for name, _ in named])
    values = []
    for number, batch in enumerate(batches(loaded, DIRECTIONS)):
        losses = [loaded.task.loss(model, batch).item()]
        for scale in (eps, -2 * eps):
            perturber.add_([number], [scale])
            losses.append(loaded.task.loss(model, batch).item())
        perturber.add_([number], [eps])
        values.append((losses[1] + losses[2] - 2 * losses[0]) / eps**2)
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std() / math.sqrt(len(found)))


def train_last_block(loaded: Loaded, blocks: Blocks, steps: int) -> None:
    """Take steps on the last block alone."""
    optimizer = SPZO(blocks, lr="auto", perturbations=(0, 16))
    for batch in tqdm(batches(loaded, steps), desc="last block"):
        optimizer.step(lambda batch=batch: loaded.task.loss(blocks.model, batch))


def table(loaded: Loaded, after: int) -> list[str]:
    blocks = loaded.split("auto")
    model = blocks.model.eval()
    if after:
        train_last_block(loaded, blocks, after)
    parts = groups(model)
    norms = gradient_norms(loaded, model, parts)
    lines = []
    for label, named in tqdm(parts.items(), desc="curvature"):
        n, s = norms[label]
        t, error = trace(loaded, model, named)
        count = sum(p.numel() for _, p in named)
        gain = n * n / (2 * s * t) if t > 0 and n > 0 else float("nan")
        lines.append(
            f"| {after} | {label} | {count:,} | {n:.3g} | {s:.3g} | {t:.3g} ± {error:.1g} |"
            f" {gain:.2g} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--after", type=int, nargs="+", default=[0, 20])
    options = parser.parse_args()
    problem = next(p for p in PROBLEMS if p.name == "reviews")
    if missing := problem.needs():
        raise SystemExit(f"block_statistics: it needs {missing}")
    loaded = load(problem)
    lines = [
        "# Where zeroth order's computation pays",
        "",
        "`python benchmarks/block_statistics.py`: SmolLM2-135M on the reviews, float32. n: squared"
        " norm of the mean gradient; s: mean squared norm of a batch's; T: trace of the Hessian;"
        f" gain: n^2 / 2 s T, the most that one direction's step can promise. On {machine()}, torch"
        f" {torch.__version__}.",
        "",
        "| steps before | weights | count | n | s | T | gain |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for after in options.after:
        lines += table(loaded, after)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

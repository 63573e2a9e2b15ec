"""Where a problem's gradient is, at the start: what decides whether cutting the network pays.

    python benchmarks/block_gradients.py

For each block its parameters; its cost share; |g|^2 of one batch's gradient, the mean over batches;
and |g|^2 of the batches' mean gradient, which is what training can use. By backpropagation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import machine
from targets.problems import PROBLEMS, Loaded, load, runnable
from torch import Tensor

from fedspzo import Blocks
from fedspzo.federated import OptimizerConfig
from fedspzo.federated.optimizers import spzo
from fedspzo.federated.partition import draw
from fedspzo.seeds import derive

RESULTS = Path(__file__).parent / "results/block_gradients.md"
BATCHES = 16


def gradients(loaded: Loaded, blocks: Blocks, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """|g|^2 by parameter: the mean of the batches', and that of their mean; both (parameters,)."""
    model, problem = blocks.model.eval(), loaded.problem
    each = torch.zeros(len(weights))
    total = [torch.zeros_like(weight) for weight in weights]
    for number in range(BATCHES):
        chosen = draw(len(loaded.train), problem.batch, derive(0, number))
        batch = loaded.task.collate([loaded.train[i] for i in chosen])
        found = torch.autograd.grad(loaded.task.loss(model, batch), weights, allow_unused=True)
        for i, gradient in enumerate(found):
            if gradient is not None:
                each[i] += gradient.square().sum() / BATCHES
                total[i] += gradient / BATCHES
    return each, torch.stack([gradient.square().sum() for gradient in total])


def table(loaded: Loaded) -> list[str]:
    """A row a block; of the first, embeddings and first layer once more."""
    blocks = loaded.split((-1, "head"))
    optimizer = spzo(blocks, OptimizerConfig(lr=1e-9), seed=0)
    batch = loaded.task.collate(loaded.train[: loaded.problem.batch])
    optimizer.step(lambda: loaded.task.loss(blocks.model, batch))  # measures the cost shares
    shares = (1.0, *(optimizer.cost_shares or ()))
    parts = [
        (f"block {number}", f"{share:.2g}", [name for name, _ in group])
        for number, (share, group) in enumerate(zip(shares, blocks.groups, strict=True), 1)
    ]
    early = [name for name in parts[0][2] if not re.search(r"layers?\.[1-9]", name)]
    weights = dict(pair for group in blocks.groups for pair in group)
    parts.insert(1, ("of it embeddings and first layer", "", early))
    each, mean = (
        dict(zip(weights, norms.tolist(), strict=True))
        for norms in gradients(loaded, blocks, list(weights.values()))
    )
    return [
        f"| {loaded.problem.name} | {part} | {sum(weights[n].numel() for n in names):,} | {cost} |"
        f" {sum(each[n] for n in names):.3g} | {sum(mean[n] for n in names):.3g} |"
        for part, cost, names in parts
    ]


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# Where the gradient is",
        "",
        f"`python benchmarks/block_gradients.py`: at the base weights, {BATCHES} batches of the"
        f" problems of `compute_to_target.py`. On {machine()}, torch {torch.__version__}.",
        "",
        "| problem | part | parameters | cost share | squared norm, a batch's gradient |"
        " that of the batches' mean |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for problem in runnable(PROBLEMS):
        lines += table(load(problem))
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

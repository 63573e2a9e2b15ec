"""Where a problem's gradient is, at the start: what decides whether cutting the network pays.

    python benchmarks/block_gradients.py

For each block its parameters; its cost share; |g|^2 of one batch's gradient, the mean over batches;
and |g|^2 of the batches' mean gradient, which is what training can use. By backpropagation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from machine import machine
from targets.problems import PROBLEMS, Loaded, load
from torch import Tensor

from fedspzo import Blocks, split
from fedspzo.federated import OptimizerConfig
from fedspzo.federated.client import spzo
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
    """A row a block; the first block's first layer, with all before it, once more by itself."""
    model = loaded.fresh()
    batch = loaded.task.collate(loaded.train[:1])
    example = {name: batch[name] for name in ("input_ids", "attention_mask")}
    blocks = split(model, (-1, "head"), example=example)
    optimizer = spzo(blocks, OptimizerConfig(lr=1e-9), seed=0)
    whole = loaded.task.collate(loaded.train[: loaded.problem.batch])
    optimizer.step(lambda: loaded.task.loss(model, whole))
    shares: list[float | None] = [1.0, *(optimizer.cost_shares or ())]
    names = [name for group in blocks.groups for name, _ in group]
    weights = [weight for group in blocks.groups for _, weight in group]
    ends = torch.tensor([len(group) for group in blocks.groups]).cumsum(0).tolist()
    parts = [(f"block {b + 1}", range(ends[b - 1] if b else 0, end)) for b, end in enumerate(ends)]
    early = [i for i in parts[0][1] if "layers." not in names[i] and "layer." not in names[i]]
    early += [i for i in parts[0][1] if "layers.0." in names[i] or "layer.0." in names[i]]
    parts.insert(1, ("of it embeddings and first layer", early))  # type: ignore[arg-type]
    shares.insert(1, None)
    each, mean = gradients(loaded, blocks, weights)
    rows = []
    for (name, members), share in zip(parts, shares, strict=True):
        which = list(members)
        count = sum(weights[i].numel() for i in which)
        cost = "" if share is None else f"{share:.4f}"
        rows.append(
            f"| {loaded.problem.name} | {name} | {count:,} | {cost} | {each[which].sum():.3g} |"
            f" {mean[which].sum():.3g} |"
        )
    return rows


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
    for problem in PROBLEMS:
        missing = problem.needs()
        if missing is not None:
            print(f"{problem.name} is left out, it needs {missing}")
            continue
        lines += table(load(problem))
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

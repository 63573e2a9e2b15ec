"""Where a federation ends that gives MiniLM a new head for a hard task, by where the head is cut.

    python benchmarks/new_head.py

MiniLM with a new classification head and 700 of the movie reviews: 4 clients, alpha 1, 5 local
steps of 16, `lr="auto"`, 32 directions of the last block. The last block is either the output layer
alone, as `split` cuts by default, or all that comes after the layers, the pooler too. Beside them
AdamW trains pooler and output layer, with gradients, on the features that they read: what there is
to be learned, and how it is overfitted. The results are written row by row.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from machine import machine
from targets.problems import PROBLEMS, REVIEWS, Loaded, load
from torch import nn

from fedspzo.app.tasks import Encoded
from fedspzo.federated import FederationConfig, OptimizerConfig, RoundResult, dirichlet, run

RESULTS = Path(__file__).parent / "results/new_head.md"
TRAIN, TESTS, ROUNDS, EVERY = 700, 300, 40, 8
CUTS = {"output layer alone (default)": "auto", "pooler and output layer": "head"}
ADAMW_STEPS, ADAMW_RATE = 800, 1e-4


def problem() -> Loaded:
    """MiniLM's problem with the reviews for its examples; all of the model trains."""
    minilm = next(problem for problem in PROBLEMS if problem.name == "minilm")
    reviews = next(problem for problem in PROBLEMS if problem.name == "reviews")
    if missing := minilm.needs() or reviews.needs():
        raise SystemExit(f"new_head: it needs {missing}")
    config = minilm.config()
    data = replace(config.data, train=REVIEWS / "train.jsonl", test=REVIEWS / "test.jsonl")
    config = replace(config, data=data)
    loaded = load(replace(minilm, config=lambda: config, freeze=None, tests=TESTS))
    return replace(loaded, train=loaded.train[:TRAIN])


def federation(loaded: Loaded, seed: int, rounds: int, cut: str = "auto") -> Iterator[str]:
    """Yield a row of the table for every evaluation of a federated run."""
    parts = dirichlet([e.label for e in loaded.train], clients=4, alpha=1.0, seed=seed)
    blocks, rows = loaded.split(cut), []

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        on_train, on_test = (loaded.task.evaluate(model, e) for e in (loaded.train, loaded.test))
        rows.append(_losses(on_train, on_test))
        return on_test

    def look(result: RoundResult) -> None:
        if result.eval_loss is not None:
            print(f"round {result.round}: {rows[-1]}", flush=True)
            rows[-1] = f"{result.round} | {result.forwards:.0f} | {rows[-1]}"

    run(
        blocks,
        loaded.task,
        [[loaded.train[i] for i in part] for part in parts],
        FederationConfig(clients=4, rounds=rounds, local_steps=5, batch_size=16, seed=seed),
        OptimizerConfig(lr="auto", perturbations=(1, 32)),
        evaluate=evaluate,
        evaluate_every=EVERY,
        on_round=look,
    )
    yield from rows


def adamw(loaded: Loaded, seed: int) -> Iterator[str]:
    """Yield a row for every eighth of AdamW's steps on the head, its features computed once."""
    model = copy.deepcopy(loaded.model).eval()
    bert, classifier = model.bert, model.classifier
    train, test = (_features(loaded, bert, e) for e in (loaded.train, loaded.test))
    head = nn.ModuleList([bert.pooler, classifier])
    optimizer = torch.optim.AdamW(head.parameters(), lr=ADAMW_RATE)
    generator = torch.Generator().manual_seed(seed)

    def logits(features: torch.Tensor) -> torch.Tensor:
        return classifier(bert.pooler(features))

    for step in range(ADAMW_STEPS + 1):
        if step % (ADAMW_STEPS // 8) == 0:
            with torch.no_grad():
                yield f"{step} | | {_losses(*(_measured(logits(x), y) for x, y in (train, test)))}"
        chosen = torch.randint(len(train[1]), (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits(train[0][chosen]), train[1][chosen]).backward()
        optimizer.step()


@torch.no_grad()
def _features(
    loaded: Loaded, bert: nn.Module, examples: Sequence[Encoded]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pooler reads, (N, T, D) with T = 1, and the labels, (N,)."""
    batches = [loaded.task.collate(examples[i : i + 64]) for i in range(0, len(examples), 64)]
    labels = torch.cat([batch.pop("labels") for batch in batches])
    return torch.cat([bert(**batch).last_hidden_state[:, :1] for batch in batches]), labels


def _measured(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    right = (logits.argmax(1) == labels).float().mean()
    return {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "accuracy": right.item(),
    }


def _losses(on_train: Mapping[str, float], on_test: Mapping[str, float]) -> str:
    return " | ".join(
        f"{found['loss']:.3f} | {found['accuracy']:.1%}" for found in (on_train, on_test)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded, (first, *_) = problem(), options.seeds
    lines = [
        "# A new head on a hard task, federated",
        "",
        f"`python benchmarks/new_head.py`: MiniLM, {TRAIN} movie reviews, 4 clients with alpha 1,"
        f' 5 local steps of 16, `lr="auto"`, 32 directions of the last block; {TESTS} test'
        f" reviews. On {machine()}, torch {torch.__version__}, one thread, {date.today()}.",
        "",
        "| last block | seed | round (AdamW: step) | passes of all clients | training loss |"
        " training accuracy | test loss | test accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    default, whole = CUTS
    ways = [(default, seed, federation(loaded, seed, options.rounds)) for seed in options.seeds]
    ways.append((whole, first, federation(loaded, first, options.rounds, CUTS[whole])))
    name = f"the same head by AdamW ({ADAMW_RATE:g}), features frozen"
    ways.append((name, first, adamw(loaded, first)))
    for way, seed, rows in ways:
        for row in rows:
            lines.append(f"| {way} | {seed} | {row} |")
            RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Where the method is weak: a task that needs new features in early layers.

    python benchmarks/new_words.py

The demo's task and model, but each adjective is written as a token that the model has never met, so
that what the words say has to be learned in the embeddings. Zeroth order with `lr="auto"`, and
AdamW by backpropagation of all weights and of the head alone, whose step counts as three full
forward passes; all for the same number of passes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from machine import machine
from targets.methods import central
from targets.problems import PROBLEMS, Loaded, load
from targets.runs import Point, Setting, race
from tqdm.auto import tqdm

from fedspzo.auto_lr.constants import START
from fedspzo.demo.writer import grammar
from fedspzo.federated.partition import draw
from fedspzo.seeds import derive

RESULTS = Path(__file__).parent / "results/new_words.md"
SEEDS = range(3)
PASSES = 1500
STEP_PASSES = 3
"""A step by backpropagation costs about three forward passes."""


def adjectives() -> list[str]:
    """The words of praise and of blame in the demo's grammar."""
    lists = [grammar()["review"]]
    lists += [aspect for genre in grammar()["genres"].values() for aspect in genre["aspects"]]
    phrases = [phrase for each in lists for name in ("good", "bad") for phrase in each[name]]
    return sorted({phrase for phrase in phrases if " " not in phrase})


def renamed(loaded: Loaded) -> tuple[Loaded, int]:
    """The problem with every adjective of one token as an unseen token, and how many there are."""
    tokenizer = loaded.task.tokenizer
    encoded = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in adjectives()]
    old = sorted({ids[0] for ids in encoded if len(ids) == 1})
    seen = {token for example in (*loaded.train, *loaded.test) for token in example.ids}
    unseen = [token for token in range(len(tokenizer)) if token not in seen and token not in old]
    names = dict(zip(old, random.Random(0).sample(unseen, len(old)), strict=True))
    train, test = (
        [replace(example, ids=tuple(names.get(i, i) for i in example.ids)) for example in part]
        for part in (loaded.train, loaded.test)
    )
    return replace(loaded, train=train, test=test), len(names)


def zeroth_order(name: str) -> Callable[[Loaded, int], list[Point]]:
    """One of the race's methods."""
    method = central(name)
    return lambda loaded, seed: race(loaded, Setting(), method, START, seed, PASSES).curve


def backpropagation(lr: float, *, head: bool) -> Callable[[Loaded, int], list[Point]]:
    """AdamW on all weights, or on those of the last block."""

    def run(loaded: Loaded, seed: int) -> list[Point]:
        blocks = loaded.split("auto")
        groups = blocks.groups[-1:] if head else blocks.groups
        adamw = torch.optim.AdamW([p for group in groups for _, p in group], lr=lr)
        curve = []
        for step in range(PASSES // STEP_PASSES + 1):
            forwards = step * STEP_PASSES
            if forwards % loaded.problem.every == 0:
                found = loaded.evaluate(blocks.model)
                curve.append(Point(forwards, found["loss"], found["accuracy"], 0.0))
            chosen = draw(len(loaded.train), loaded.problem.batch, derive(seed, step))
            batch = loaded.task.collate([loaded.train[i] for i in chosen])
            adamw.zero_grad()
            loaded.task.loss(blocks.model, batch).backward()
            adamw.step()
        return curve

    return run


METHODS = {
    "AdamW, all weights, lr 1e-3": backpropagation(1e-3, head=False),
    "AdamW, the head alone, lr 1e-2": backpropagation(1e-2, head=True),
    "FedSPZO, lr auto": zeroth_order("FedSPZO, lr auto"),
    "MeZO, 4 one-sided, lr auto": zeroth_order("MeZO, 4 one-sided, lr auto"),
}


def rows(loaded: Loaded) -> Iterator[str]:
    """A row a method: the accuracies of all seeds at the start, halfway and at the end."""
    for name, run in METHODS.items():
        curves = [run(loaded, seed) for seed in tqdm(SEEDS, desc=name, unit="run")]
        cells = []
        for due in (0, PASSES // 2, PASSES):
            points = [next(p for p in curve if p.forwards >= due) for curve in curves]
            cells.append(", ".join(f"{point.accuracy:.1%}" for point in points))
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    torch.set_num_threads(1)
    decoder = next(problem for problem in PROBLEMS if problem.name == "decoder")
    loaded, count = renamed(load(replace(decoder.endless(), every=150)))
    lines = [
        "# New words",
        "",
        f"`python benchmarks/new_words.py`: the demo's task with {count} adjectives as tokens that"
        " the model has never met; accuracy on examples never trained on, a seed each. On"
        f" {machine()}, torch {torch.__version__}.",
        "",
        f"| method | start | after {PASSES // 2} passes | after {PASSES} passes |",
        "| --- | --- | --- | --- |",
        *rows(loaded),
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

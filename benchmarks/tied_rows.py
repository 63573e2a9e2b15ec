"""What it changes that a prompt's answer rows are no longer tied to the input embeddings.

    python benchmarks/tied_rows.py

SmolLM2-135M on the reviews, its last block trained with `lr="auto"`. Then the rows that were
learned are tied again: they also replace the words' input embeddings, as they would in a model that
stays tied. The two differ only for texts that contain one of the words.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import machine
from targets.problems import PROBLEMS, Loaded, load
from torch import nn
from tqdm.auto import tqdm

from fedspzo import SPZO
from fedspzo.app.tasks import Encoded
from fedspzo.blocks.output_rows import OutputRows
from fedspzo.federated.partition import draw
from fedspzo.seeds import derive

RESULTS = Path(__file__).parent / "results/tied_rows.md"
STEPS = 80


def train(loaded: Loaded, seed: int) -> nn.Module:
    """The model after `STEPS` steps of its last block: the last norm and the rows."""
    blocks = loaded.split("auto")
    optimizer = SPZO(blocks, lr="auto", perturbations=(0, 16), seed=seed)
    for step in tqdm(range(STEPS), desc=f"seed {seed}"):
        chosen = draw(len(loaded.train), loaded.problem.batch, derive(seed, step))
        batch = loaded.task.collate([loaded.train[i] for i in chosen])
        optimizer.step(lambda batch=batch: loaded.task.loss(blocks.model, batch))
    return blocks.model


@torch.no_grad()
def tied_again(model: nn.Module) -> nn.Module:
    """A copy whose input embeddings are the rows that were learned."""
    tied = copy.deepcopy(model)
    head = tied.get_output_embeddings()
    assert isinstance(head, OutputRows)
    tied.get_input_embeddings().weight[head.tokens] = head.rows
    return tied


def with_words(examples: Sequence[Encoded], words: Sequence[int]) -> list[Encoded]:
    """The examples whose text contains one of the words."""
    return [example for example in examples if set(words) & set(example.ids)]


def main() -> None:
    torch.set_num_threads(1)
    problem = next(problem for problem in PROBLEMS if problem.name == "reviews")
    if missing := problem.needs():
        raise SystemExit(f"tied_rows: it needs {missing}")
    loaded = load(problem)
    lines = []
    for seed in range(2):
        model = train(loaded, seed).eval()
        words = model.get_output_embeddings().tokens.tolist()
        for name, changed in (("of their own", model), ("tied again", tied_again(model))):
            for texts, examples in (
                ("all", loaded.test),
                ("with one of the words", with_words(loaded.test, words)),
            ):
                found = loaded.task.evaluate(changed, examples)
                accuracy, loss = found["accuracy"], found["loss"]
                lines.append(
                    f"| {seed} | {name} | {texts} | {len(examples)} | {accuracy:.1%} | {loss:.4f} |"
                )
                print(lines[-1], flush=True)
    head = [
        "# A prompt's answer rows: tied to the input embeddings, or not",
        "",
        f"`python benchmarks/tied_rows.py`: {problem.title}; {STEPS} steps of the last block with"
        f' `lr="auto"`, then validation snippets. On {machine()}, torch {torch.__version__}.',
        "",
        "| seed | the rows | snippets | count | accuracy | loss |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    RESULTS.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

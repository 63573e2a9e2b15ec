"""Writes all text of the demo from `grammar.toml` and a seed, the same bytes on every machine.

``python -m fedspzo.demo.corpus`` writes the data files of the demo and the examples again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .writer import HERE, LABELS, Writer

SEED = 20250210
TOPICS = ("billing", "delivery", "technical", "other")
TRAIN_ROWS, TEST_ROWS = 1600, 600

Row = dict[str, str]

_STOP = re.compile(r"[.!?](?= |$)")


def reviews(
    seed: int, train: int, test: int, *, mixed: float, negated: float
) -> tuple[list[Row], list[Row]]:
    """Write two disjoint lists of different reviews, with each of `LABELS` equally often.

    Args:
        seed: the seed of all choices.
        train: number of training rows.
        test: number of test rows.
        mixed: chance that a review also concedes the opposite.
        negated: chance that a claim denies the opposite.

    Returns:
        The training rows and the test rows.
    """
    writer = Writer(seed, mixed=mixed, negated=negated)
    return _split(
        lambda label: writer.review(writer.genre(), label), LABELS, train, test, writer.rng
    )


def tickets(seed: int, train: int, test: int) -> tuple[list[Row], list[Row]]:
    """Write two disjoint lists of different customer messages, labelled with `TOPICS`.

    Args:
        seed: the seed of all choices.
        train: number of training rows.
        test: number of test rows.

    Returns:
        The training rows and the test rows.
    """
    writer = Writer(seed)
    names = dict(zip(TOPICS, writer.grammar["tickets"]["subjects"], strict=True))
    return _split(lambda label: writer.ticket(names[label]), TOPICS, train, test, writer.rng)


def with_answers(rows: Sequence[Row]) -> list[Row]:
    """Return customers' messages as prompts, each with the team that answers it as its answer."""
    writer = Writer(SEED)
    names = dict(zip(TOPICS, writer.grammar["tickets"]["subjects"], strict=True))
    return [
        {"prompt": f"{row['text']} This is about", "answer": f"{names[row['label']]} team."}
        for row in rows
    ]


def _split(
    write: Callable[[str], str], labels: Sequence[str], train: int, test: int, rng: random.Random
) -> tuple[list[Row], list[Row]]:
    rows: dict[str, Row] = {}
    while len(rows) < train + test:
        label = labels[len(rows) % len(labels)]
        text = write(label)
        rows.setdefault(text.lower(), {"text": text, "label": label})
    shuffled = list(rows.values())
    rng.shuffle(shuffled)
    return shuffled[:train], shuffled[train:]


def demo_data() -> tuple[list[Row], list[Row]]:
    """Write the demo's training rows and test rows."""
    return reviews(SEED + 1, TRAIN_ROWS, TEST_ROWS, mixed=0.38, negated=0.2)


def example_data() -> dict[str, tuple[list[Row], list[Row]]]:
    """Write the training and test rows of the examples that use the grammar, by example."""
    return {
        "sentiment": reviews(SEED + 2, 400, 300, mixed=0.3, negated=0.2),
        "own_labels": tickets(SEED + 3, 480, 240),
    }


def held_out() -> frozenset[str]:
    """Return the texts of all data sets. The pretraining corpus must not contain any of them."""
    sets = [demo_data(), *example_data().values()]
    return frozenset(row["text"] for pair in sets for rows in pair for row in rows)


def pretraining(documents: int, seed: int = SEED) -> Iterator[str]:
    """Yield the documents of the pretraining corpus, without any held-out text.

    Args:
        documents: number of documents.
        seed: the seed of all choices.
    """
    writer = Writer(seed, bare=0.5)
    banned = held_out()
    makers = (writer.reviewed, writer.reported, writer.everyday)
    for number in range(documents):
        # Plain reviews come first and "this, but that" ones later, as the model has to learn what
        # a word says before it learns how a phrase reverses it.
        hardness = min(1.0, max(0.0, 3.0 * number / documents - 0.75))
        writer.mixed, writer.negated = 0.5 * hardness, 0.25 * hardness
        make = writer.rng.choices(makers, (75, 15, 10))[0]
        document = make()
        while not banned.isdisjoint(passages(document)):
            document = make()
        yield document


def passages(document: str) -> set[str]:
    """Return all runs of consecutive whole sentences of a document."""
    ends = [match.end() for match in _STOP.finditer(document)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return {document[start:end] for start in starts for end in ends if end > start}


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=["text", "label"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def data_files() -> dict[str, str]:
    """Return the content of each data file by its name, such as "demo/train.jsonl"."""
    files = {}
    for split, rows in zip(("train", "test"), demo_data(), strict=True):
        files[f"demo/{split}.jsonl"] = _jsonl(rows)
    for name, pair in example_data().items():
        for split, rows in zip(("train", "test"), pair, strict=True):
            if name == "own_labels":
                files[f"{name}/{split}.csv"] = _csv(rows)
                files[f"answers/{split}.jsonl"] = _jsonl(with_answers(rows))
            else:
                files[f"{name}/{split}.jsonl"] = _jsonl(rows)
    return files


def write(path: Path, content: str) -> None:
    """Write a text file as a whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data files of the demo, and those of the examples if their folder is given."""
    parser = argparse.ArgumentParser(prog="python -m fedspzo.demo.corpus", description=main.__doc__)
    parser.add_argument("--examples", type=Path, help="the repository's examples folder")
    options = parser.parse_args(arguments)
    for name, content in data_files().items():
        folder, _, file = name.partition("/")
        if folder == "demo":
            write(HERE / "data" / file, content)
        elif options.examples is not None:
            write(options.examples / folder / file, content)


if __name__ == "__main__":
    main()

"""What is fine-tuned: three models, their data, and the targets to reach."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fedspzo import Blocks, split
from fedspzo.app import config as configuration
from fedspzo.app import models
from fedspzo.app.commands.run import DEMO_CONFIG
from fedspzo.app.config import Config, ModelConfig
from fedspzo.app.data import read_splits
from fedspzo.app.tasks import Encoded, Task

from . import masked

ROOT = Path(__file__).parents[2]

ALPHAS, LOCAL_STEPS = (10.0, 0.1), (1, 5, 20)
"""The federations that are raced, unless a problem says otherwise: every pair."""

Cut = str | int | tuple[int | str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model, a task, and when it counts as learned.

    Attributes:
        name: of its results' file.
        title: for people.
        config: makes the run's configuration; `needs` tells what is missing for it, or None.
        freeze: parameters whose names hold this do not train, for any method.
        change: changes what was loaded.
        batch: examples in a step.
        clients: of the federated runs.
        every: full forward passes between evaluations.
        budget: full forward passes after which a run is given up.
        accuracies: targets on the test examples; the last one is what rates are tuned for.
        losses: further targets.
        tests: how many test examples are looked at.
        grid: added to the power of two that a method's rates are first looked for at.
        tuning_budget: full forward passes after which a run that tunes a rate is given up.
        tuning: how many seeds rates are tuned on.
        seeds: how many others the results are of.
        alphas: label skews of the federated runs.
        local_steps: numbers of local steps of the federated runs.
        federated_budget: a federation's budget over central training's.
        federated_seeds: how many seeds a federation's rates are tuned on, and the results are of.
    """

    name: str
    title: str
    config: Callable[[], Config]
    needs: Callable[[], str | None] = lambda: None
    freeze: str | None = None
    change: Callable[[Loaded], Loaded] = lambda loaded: loaded
    batch: int = 16
    clients: int = 8
    every: int = 25
    budget: int = 1500
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    tests: int = 300
    grid: int = 0
    tuning_budget: float = math.inf
    tuning: int = 5
    seeds: int = 9
    alphas: tuple[float, ...] = ALPHAS
    local_steps: tuple[int, ...] = LOCAL_STEPS
    federated_budget: float = 3
    federated_seeds: tuple[int, int] = (2, 3)

    def endless(self) -> Problem:
        """The same with targets that no run reaches."""
        return replace(self, accuracies=(2.0,), losses=(-1.0,))


@dataclass(frozen=True)
class Loaded:
    """A problem in memory; `fresh` gives the model from the start."""

    problem: Problem
    model: nn.Module
    task: Task
    train: list[Encoded]
    test: list[Encoded]

    def fresh(self) -> nn.Module:
        """A copy of the base model."""
        return copy.deepcopy(self.model)

    def split(self, at: Cut) -> Blocks:
        """The base model's copy, cut there; None: not cut."""
        model = self.fresh()
        if at is None:
            return Blocks.single(model)
        batch = self.task.collate(self.train[:1])
        example = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return split(model, at, example=example)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracy on examples never trained on."""
        return self.task.evaluate(model, self.test)


def runnable(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield the problems whose parts are here; tell what the others need."""
    for problem in problems:
        if missing := problem.needs():
            print(f"{problem.name} is left out, it needs {missing}")
        else:
            yield problem


def load(problem: Problem) -> Loaded:
    """The problem's model, task and examples."""
    config = problem.config()
    splits = read_splits(config.data, config.task)
    model, task, _ = models.load(config, splits)
    for name, parameter in model.named_parameters():
        if problem.freeze is not None and problem.freeze in name:
            parameter.requires_grad_(False)
    test: Sequence[Any] = splits.test[: problem.tests]
    train = task.encode(splits.train)
    return problem.change(Loaded(problem, model, task, train, task.encode(test)))


def _decoder() -> Config:
    return configuration.load(DEMO_CONFIG)


REAL = ROOT / "examples/minilm"


def _real() -> Config:
    return configuration.load(REAL / "config.toml")


MASKED = ROOT / "runs/masked_encoder"


def _encoder() -> Config:
    if not MASKED.is_dir():
        masked.make(MASKED)
    config = configuration.load(DEMO_CONFIG)
    task = replace(config.task, template="{text} It was {mask}.")
    return replace(config, model=ModelConfig(name=str(MASKED)), task=task)


REVIEWS = ROOT / "examples/reviews"


def _reviews() -> Config:
    """The reviews, looked at on the validation split: the test split is for the final runs."""
    config = configuration.load(REVIEWS / "config.toml")
    return replace(config, data=replace(config.data, test=REVIEWS / "validation.jsonl"))


def _sentences() -> Config:
    """The sentences, likewise."""
    config = configuration.load(REVIEWS / "sentences.toml")
    return replace(config, data=replace(config.data, test=REVIEWS / "sentences/validation.jsonl"))


def _needs_sentences() -> str | None:
    there = (REVIEWS / "model").exists() and (REVIEWS / "sentences/train.jsonl").exists()
    return None if there else "model and sentences: run `make sentences` once"


def _needs_reviews() -> str | None:
    there = (REVIEWS / "model").exists() and (REVIEWS / "train.jsonl").exists()
    return None if there else "model and reviews: run `make real` once"


def _needs_real() -> str | None:
    return None if (REAL / "model").exists() else "its weights: run `make minilm` once"


PROBLEMS = (
    Problem(
        name="reviews",
        title="SmolLM2, 134.5 M parameters, tied embeddings, real movie reviews, a word after them",
        config=_reviews,
        needs=_needs_reviews,
        clients=4,
        every=40,
        budget=600,
        accuracies=(0.75, 0.78),
        losses=(0.55, 0.50),
        tests=256,
        grid=-5,
        tuning_budget=400,
        tuning=1,
        seeds=3,
        alphas=(1.0,),
        local_steps=(5,),
        federated_budget=1,
        federated_seeds=(1, 2),
    ),
    Problem(
        name="sentences",
        title="SmolLM2, real sentences of product, film and restaurant reviews",
        config=_sentences,
        needs=_needs_sentences,
        clients=4,
        every=40,
        budget=600,
        accuracies=(0.85, 0.90),
        losses=(0.35, 0.30),
        tests=256,
        grid=-5,
        tuning_budget=400,
        tuning=1,
        seeds=2,
        alphas=(1.0,),
        local_steps=(5,),
        federated_budget=1,
        federated_seeds=(1, 2),
    ),
    Problem(
        name="decoder",
        title="decoder, 0.6 M parameters, a word after the text",
        config=_decoder,
        every=10,
        accuracies=(0.90, 0.95),
        losses=(0.30, 0.15),
    ),
    Problem(
        name="encoder",
        title="masked encoder, 0.6 M parameters, a word in place of a mask",
        config=_encoder,
        every=10,
        accuracies=(0.85, 0.90),
        losses=(0.35, 0.30),
    ),
    Problem(
        name="minilm",
        title="MiniLM, a new head on 22.7 M pretrained parameters, 11.0 M trained, real sentences",
        config=_real,
        needs=_needs_real,
        freeze="word_embeddings",
        batch=8,
        clients=4,
        budget=1000,
        accuracies=(0.80, 0.85),
        losses=(0.55, 0.45),
        tests=150,
        tuning=2,
        seeds=3,
    ),
)

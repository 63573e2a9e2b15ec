"""Runs a checked config: it trains, compares with MeZO, reports, and saves the results."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

import torch
from torch import nn

from fedspzo import estimators
from fedspzo.blocks.cut import Blocks, split
from fedspzo.blocks.output_rows import merge_rows
from fedspzo.errors import InputError, one_line
from fedspzo.federated import OptimizerConfig, RoundResult, RunResult, dirichlet, iid
from fedspzo.federated import run as run_federation
from fedspzo.federated.client import spzo
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.records import digest
from fedspzo.privacy import Mechanism

from . import models
from .config import Config, evaluation_interval, to_toml
from .data import Example, Splits
from .ending import fault
from .model_files import check_same_files, model_files
from .pretrained import Recipe
from .report import ProgressReport, figure_png, print_table
from .resume import identity
from .run_folder import CONFIG, FIGURE, JOURNAL, METRICS, MEZO_JOURNAL, MEZO_METRICS, RunFolder
from .tasks import Encoded, Task

Row = dict[str, Any]

SMALL = 4_000_000
"""Number of parameters below which a run uses one thread, unless OMP_NUM_THREADS is set."""

COPIES = 32_000_000
"""Number of parameters, over all clients, up to which each client has a copy of the model.

Above it the clients share one copy.
"""


def run(config: Config, splits: Splits, folder: RunFolder, *, quiet: bool = False) -> Row:
    """Train as the config says, and then with MeZO if the config has [mezo].

    Args:
        config: the run's configuration.
        splits: its data, from `data.read_splits`.
        folder: the folder of the results. Nothing is written before the model and the task are
            checked.
        quiet: print nothing. Default False.

    Returns:
        The summary, which is the last line of metrics.jsonl.

    Raises:
        InputError: the model cannot be loaded, or does not fit the task, data or settings.
    """
    start = time.perf_counter()
    beside = model_files(config.model.name)
    model, task, recipe = models.load(config, splits)
    check_same_files(
        config.model.name,
        beside,
        "it began to load",
        "run the command again once it is as it stays",
    )
    # a hub id's files are in the cache by now
    about = identity(config, splits, model_files(config.model.name))
    parameters = sum(p.numel() for p in model.parameters())
    if parameters < SMALL and "OMP_NUM_THREADS" not in os.environ:
        # A small model's operations are too short for several threads: they gain little on a free
        # machine, and lose a factor of twenty on a busy one, where they wait for each other.
        torch.set_num_threads(1)
    experiment = Experiment(config, splits, task, recipe, folder, about, quiet=quiet)
    blocks = experiment.cut(model, config.optimizer)
    folder.create()
    if not folder.resumes:
        folder.write(CONFIG, to_toml(config))

    rounds = config.federation.rounds
    every = config.output.evaluate_every or evaluation_interval(rounds)
    files = (METRICS, JOURNAL)
    result, rows = experiment.train_model(
        blocks, config.optimizer, rounds=rounds, every=every, files=files, title="FedSPZO"
    )
    used = replace(result.optimizer, at=config.optimizer.at)
    if config.optimizer.lr == "auto":  # its rates change, so no single value is right
        used = replace(used, lr="auto")
    folder.write(CONFIG, to_toml(replace(config, optimizer=used)))
    merge_rows(model)
    folder.save_model(model, task.tokenizer)

    summary = _summary(config, splits.test, rows)
    mezo_rows = experiment.train_mezo(summary["forwards"], rows[0]["digest"]) if config.mezo else []
    if mezo_rows:
        last = mezo_rows[-1]
        keys = ("accuracy", "loss", "forwards", "bytes_up", "bytes_down", "skipped")
        summary |= {f"mezo_{key}": last[key] for key in keys}
    bad = fault(summary, config, len(splits.test))
    if bad is not None:
        summary["fault"] = bad
    summary["seconds"] = round(time.perf_counter() - start, 2)
    title = f"{config.name}: {config.federation.clients} clients, {rounds} rounds"
    folder.write(FIGURE, figure_png(rows, mezo_rows, title))
    folder.finish(summary)
    if not quiet:
        print_table(summary, title)
        if config.privacy is not None:
            spent = max(value or math.inf for value in summary["epsilons"])
            print(
                f"No client has spent more than epsilon {spent:.3g} at delta {summary['delta']:g}."
            )
        print(f"Every participant holds the weights with digest {summary['digest']}.")
        print(f"Model, metrics, config and figure are in {folder.path}")
    return summary


class Experiment:
    """Trains with FedSPZO and with MeZO, on the same clients and data.

    Args:
        config: the run's configuration.
        splits: the examples.
        task: encodes the examples, and computes the loss.
        recipe: the options with which the model was loaded.
        folder: the folder of the results.
        about: what identifies the run, for the journals' headers (`resume.identity`).
        quiet: print nothing.

    Raises:
        InputError: the examples cannot be dealt as [federation] says, or do not fit [privacy].
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        task: Task,
        recipe: Recipe,
        folder: RunFolder,
        about: Row,
        *,
        quiet: bool,
    ) -> None:
        self.config = config
        self.about = about
        self.splits = splits
        self.task = task
        self.recipe = recipe
        self.folder = folder
        self.quiet = quiet
        self.test = task.encode(splits.test)
        train = task.encode(splits.train)
        with self._naming("[federation]"):
            self.clients = _deal(train, config)
        with self._naming("[privacy]"):
            if config.privacy is not None:
                for own in self.clients:
                    Mechanism(config.privacy, len(own))  # raises ValueError if delta does not fit

    def cut(self, model: nn.Module, optimizer: OptimizerConfig) -> Blocks:
        """Cut the model into the blocks of `optimizer`. A joint estimator has a single block.

        Raises:
            InputError: the model cannot be cut there, or a setting does not fit the blocks.
        """
        if estimators.find(optimizer.estimator).joint:
            return Blocks.single(model)
        batch = self.task.collate(self.clients[0][:1])
        device = next(model.parameters()).device
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        with self._naming("[optimizer]"):
            blocks = split(model, optimizer.at, example=inputs)
            spzo(blocks, optimizer)  # raises ValueError if a setting does not fit the blocks
        return blocks

    def train_model(
        self,
        blocks: Blocks,
        optimizer: OptimizerConfig,
        *,
        rounds: int,
        every: int,
        files: tuple[str, str],
        title: str,
    ) -> tuple[RunResult, list[Row]]:
        """Fine-tune a model in place. Go on after the journal's rounds if it has any.

        Args:
            blocks: the model.
            optimizer: the settings of a client's step.
            rounds: number of rounds.
            every: number of rounds from one evaluation to the next.
            files: names of the metrics and the journal. The metrics of a resumed run are written
                again from the journal.
            title: the method's name, for the progress.

        Returns:
            The run's result, and a row for each round.
        """
        metrics, name = files
        rows: list[Row] = []
        clients = self.config.federation.clients
        parameters = sum(p.numel() for p in blocks.model.parameters())
        with (
            self._journal(name) as journal,
            ProgressReport(title, rounds, quiet=self.quiet) as progress,
        ):
            past = len(journal.rounds)
            if journal.optimizer is not None and not self.quiet:
                cut = f", a torn record of {journal.torn} bytes cut off" if journal.torn else ""
                line = f"fedspzo: going on with {title} after round {past} of {rounds}{cut}"
                print(line, file=sys.stderr, flush=True)

            def keep(result: RoundResult) -> None:
                if result.round == 0:
                    self.folder.write(metrics, "")
                rows.append(as_row(result))
                self.folder.append(metrics, rows[-1])
                if result.round >= past:
                    progress.update(rows[-1])

            outcome = run_federation(
                blocks,
                self.task,
                self.clients,
                replace(self.config.federation, rounds=rounds),
                optimizer,
                evaluate=lambda model: self.task.evaluate(model, self.test),
                evaluate_every=every,
                on_round=keep,
                replicas=clients if clients * parameters <= COPIES else 1,
                journal=journal,
                privacy=self.config.privacy,
            )
        return outcome, rows

    def _journal(self, name: str) -> RunJournal:
        return RunJournal(
            self.folder.path / name,
            source=self.config.model.name,
            model=asdict(self.recipe),
            about=self.about,
        )

    def train_mezo(self, forwards: float, base: str) -> list[Row]:
        """Train with MeZO from the same start, and return its rows.

        Args:
            forwards: computation of all clients, in full forward passes. It sets the number of
                rounds.
            base: digest of the start.

        Raises:
            ValueError: the config has no [mezo].
            InputError: the base model has changed since the run began.
        """
        if self.config.mezo is None:
            raise ValueError("mezo is None; give the config a [mezo] section")
        settings = self.config.mezo
        optimizer = settings.optimizer()
        federation = self.config.federation
        steps = federation.participants * federation.local_steps
        rounds = max(1, round(forwards / (steps * settings.forwards_per_step)))
        model, _, _ = models.load(self.config, self.splits)
        if digest(model.named_parameters()) != base:
            raise InputError(
                f"[model] name is {self.config.model.name!r}, whose weights have changed since the"
                " run began, so MeZO would start elsewhere; restore them and run the command again"
            )
        _, rows = self.train_model(
            self.cut(model, optimizer),
            optimizer,
            rounds=rounds,
            every=evaluation_interval(rounds),
            files=(MEZO_METRICS, MEZO_JOURNAL),
            title="MeZO",
        )
        return rows

    @contextmanager
    def _naming(self, section: str) -> Iterator[None]:
        """Turn a ValueError into an InputError that names the file and the section."""
        try:
            yield
        except ValueError as error:
            raise InputError(f"{self.config.path}: {section} {one_line(error)}") from None


def _deal(train: list[Encoded], config: Config) -> list[list[Encoded]]:
    """Deal the examples to the clients, as [federation] says."""
    federation = config.federation
    if federation.partition == "dirichlet":
        labels = [example.label for example in train]
        parts = dirichlet(labels, federation.clients, federation.alpha, federation.seed)
    else:
        parts = iid(len(train), federation.clients, federation.seed)
    return [[train[index] for index in part] for part in parts]


def as_row(result: RoundResult) -> Row:
    """Return a round's line of metrics.jsonl.

    `loss` and `accuracy` are held-out values, and None between evaluations. Numbers that are not
    finite become None, as JSON cannot hold them.
    """
    row = asdict(result)
    row["train_loss"] = row.pop("loss")
    row["loss"] = row.pop("eval_loss")
    row["clients"] = list(result.clients)
    if result.lr is None:
        del row["lr"]
    if result.epsilons is None:
        del row["epsilons"]
    else:
        row["epsilons"] = [
            epsilon if math.isfinite(epsilon) else None for epsilon in result.epsilons
        ]
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            row[key] = None
    return row


def _summary(config: Config, test: list[Example], rows: list[Row]) -> Row:
    first, last = rows[0], rows[-1]
    keys = ("accuracy", "loss", "forwards", "bytes_up", "bytes_down", "fedavg_bytes", "digest")
    summary = {"summary": True, **{key: last[key] for key in keys}}
    summary["skipped"] = last["skipped"]
    if config.privacy is not None:
        summary |= {"epsilons": last["epsilons"], "delta": config.privacy.delta}
    summary["zero_shot_accuracy"] = first["accuracy"]
    summary["zero_shot_loss"] = first["loss"]
    counts = Counter(example.label for example in test if example.label is not None)
    if counts:
        summary["majority_accuracy"] = max(counts.values()) / len(test)
    summary["model"] = config.model.name
    summary["rounds"] = config.federation.rounds
    summary["seed"] = config.federation.seed
    summary["versions"] = {name: metadata.version(name) for name in ("torch", "transformers")}
    return summary

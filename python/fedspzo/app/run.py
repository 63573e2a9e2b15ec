"""Runs a checked config: it trains, compares with MeZO, reports, and saves the results."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata

import torch

from fedspzo.blocks.output_rows import merge_rows

from . import models
from .config import Config, to_toml
from .data import Splits
from .ending import fault
from .engines import Engine, engine_of
from .examples import Example
from .experiment import Experiment, Trained
from .measures import Measured, by_class
from .metrics import Row
from .model_files import check_same_files, model_files
from .report import figure_png, print_classes, print_table
from .resume import identity
from .run_folder import CONFIG, FIGURE, RunFolder
from .waiting import waiting

COSTS = ("forwards", "bytes_up", "bytes_down", "skipped")
"""Entries of a row that are totals since the start."""

SMALL = 4_000_000
"""Number of parameters below which a run uses one thread, unless the user has chosen."""


def run(
    config: Config,
    splits: Splits,
    folder: RunFolder,
    *,
    quiet: bool = False,
    choose_threads: bool = False,
    engine: Engine | None = None,
) -> Row:
    """Train as the config says, and then with MeZO if the config has [mezo].

    Args:
        config: the run's configuration.
        splits: its data, from `data.read_splits`.
        folder: the folder of the results. Nothing is written before the model and the task are
            checked.
        quiet: print nothing. Default False.
        choose_threads: set torch's number of threads to the faster of one and all (`threads`).
            Default False: leave it as it is.
        engine: runs the clients. Default None: that of the config.

    Returns:
        The summary, which is the last line of metrics.jsonl.

    Raises:
        InputError: the model cannot be loaded, or does not fit the task, data or settings.
    """
    start, engine = time.perf_counter(), engine or engine_of(config)
    beside = model_files(config.model.name)
    with waiting(f"loading {config.model.name}", quiet=quiet):
        model, task, recipe = models.load(config, splits)
    check_same_files(
        config.model.name,
        beside,
        "it began to load",
        "run the command again once it is as it stays",
    )
    # a hub id's files are in the cache by now
    about = identity(config, splits, model_files(config.model.name))
    small = sum(p.numel() for p in model.parameters()) < SMALL
    if choose_threads and small:
        # A small model's operations are too short for several threads: they gain little on a free
        # machine, and lose a factor of twenty on a busy one, where they wait for each other.
        torch.set_num_threads(1)
    task.encoded.total = splits.size
    with waiting("encoding", count=task.encoded, quiet=quiet):
        experiment = Experiment(
            config, splits, model, task, recipe, folder, about, quiet=quiet, engine=engine
        )
    blocks = experiment.cut(model, config.optimizer)
    if choose_threads and not small:
        experiment.choose_threads(model)
    folder.create()
    if not quiet:
        experiment.print_partition()
    folder.write(CONFIG, to_toml(config))

    trained = experiment.train_fedspzo(blocks)
    used = replace(trained.optimizer, at=config.optimizer.at)
    if config.optimizer.lr == "auto":  # its rates change, so no single value is right
        used = replace(used, lr="auto")
    folder.write(CONFIG, to_toml(replace(config, optimizer=used)))
    merge_rows(trained.model)
    folder.save_model(trained.model, task.tokenizer)

    summary = _summary(config, splits.test, trained)
    summary |= by_class(trained.after, task.classes)
    mezo_rows: list[Row] = []
    if config.mezo is not None:
        mezo = experiment.train_mezo(summary["forwards"], trained.rows[0]["digest"])
        mezo_rows = mezo.rows
        summary |= {f"mezo_{key}": mezo_rows[-1][key] for key in COSTS}
        summary |= {f"mezo_{key}": value for key, value in _worth(mezo.after).items()}
    summary["threads"] = torch.get_num_threads()
    bad = fault(summary, config, len(splits.test))
    if bad is not None:
        summary["fault"] = bad
    summary["seconds"] = round(time.perf_counter() - start, 2)
    title = f"{config.name}: {config.federation.clients} clients, {summary['rounds']} rounds"
    folder.write(FIGURE, figure_png(trained.rows, mezo_rows, title))
    folder.finish(summary)
    if not quiet:
        print_table(summary, title)
        print_classes(summary)
        for line in _told(config, summary):
            print(line)
        if experiment.threads is not None and experiment.threads.line:
            print(f"It was computed on {experiment.threads.line}.")
        print(f"Model, metrics, config and figure are in {folder.path}")
    return summary


def _told(config: Config, summary: Row) -> Iterator[str]:
    """Yield what is printed below the tables."""
    for key, name in (("exact_match", "Exact match"), ("token_f1", "Token F1")):
        if key in summary:
            line = f"{name} of generated answers: {summary[key]:.1%}, before training"
            yield f"{line} {summary['zero_shot_' + key]:.1%}."
    if config.privacy is not None:
        spent = max(value or math.inf for value in summary["epsilons"])
        yield f"No client has spent more than epsilon {spent:.3g} at delta {summary['delta']:g}."
    if summary["rounds"] < config.federation.rounds:
        yield (
            f"Training stopped after round {summary['rounds']} of {config.federation.rounds}, as"
            f" the last {config.output.patience} evaluations brought no better one."
        )
    if config.keeps_best:
        yield (
            f"The model is that of round {summary['kept_round']}, the best on the validation"
            f" examples, with digest {summary['kept_digest']}."
        )
    yield f"Every participant holds the weights with digest {summary['digest']}."


def _summary(config: Config, test: list[Example], trained: Trained) -> Row:
    last = trained.rows[-1]
    summary = {"summary": True, **_worth(trained.after)}
    summary |= {key: last[key] for key in (*COSTS, "fedavg_bytes", "digest")}
    if config.privacy is not None:
        summary |= {"epsilons": last["epsilons"], "delta": config.privacy.delta}
    summary |= {f"zero_shot_{key}": value for key, value in _worth(trained.before).items()}
    counts = Counter(example.label for example in test if example.label is not None)
    if counts:
        summary["majority_accuracy"] = max(counts.values()) / len(test)
    if config.data.validation is not None:
        kept = trained.rows[trained.round]
        summary |= {f"validation_{key}": kept[key] for key in ("accuracy", "loss")}
    summary |= {"kept_round": trained.round, "kept_digest": trained.digest}
    summary["model"] = config.model.name
    summary["rounds"] = last["round"]
    summary["seed"] = config.federation.seed
    summary["versions"] = {name: metadata.version(name) for name in ("torch", "transformers")}
    return summary


def _worth(measured: Measured) -> Row:
    """Return accuracy, loss and scores of answers.

    A loss that is not finite is None, as JSON cannot hold it.
    """
    loss = measured.loss if math.isfinite(measured.loss) else None
    return {"accuracy": measured.accuracy, "loss": loss, **measured.answers}

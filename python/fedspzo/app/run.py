"""Runs a checked config: it trains, compares with MeZO, reports, and saves the results."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

import fedspzo_kernels

from . import models
from .callbacks import RunCallback, named
from .completion import Completion, longest_answer
from .config import Config, to_toml
from .data import Splits
from .ending import fault
from .engines import Engine, engine_of
from .examples import Example
from .experiment import Experiment, Trained
from .figure import figure_png
from .measures import by_class, worth
from .metrics import Row, largest_epsilon
from .model_card import CARD, model_card
from .model_files import check_same_files, model_files
from .pretrained import save_pretrained
from .printed_tables import print_classes, print_table
from .recipe import Recipe
from .resume import identity
from .run_folder import CONFIG, FIGURE, RunFolder
from .saved_task import SavedTask
from .tasks import Encoded, HeadClassification, Task
from .threads import Threads, one_thread_if_small
from .waiting import waiting

COSTS = ("forwards", "bytes_up", "bytes_down", "skipped")
"""Entries of a row that are totals since the start."""


def run(
    config: Config,
    splits: Splits,
    folder: RunFolder,
    *,
    quiet: bool = False,
    choose_threads: bool = False,
    engine: Engine | None = None,
    callbacks: Sequence[RunCallback] = (),
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
        callbacks: follow the run, after those that [output] report_to names. Default: none.

    Returns:
        The summary, which is the last line of metrics.jsonl.

    Raises:
        InputError: the model cannot be loaded, or does not fit the task, data or settings.
    """
    start, engine = time.perf_counter(), engine or engine_of(config)
    followers = [*named(config), *callbacks]
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
    timed = choose_threads and not one_thread_if_small(model)
    task.encoded.total = splits.size
    with waiting("encoding", count=task.encoded, quiet=quiet):
        experiment = Experiment(
            config,
            splits,
            model,
            task,
            recipe,
            folder,
            about,
            followers,
            quiet=quiet,
            engine=engine,
        )
    saved = _saved_task(config, recipe, task, experiment.test)
    experiment.about["task"] = saved.in_header()
    blocks = experiment.cut(model, config.optimizer)
    if timed:
        experiment.choose_threads(model)
    folder.create()
    if not quiet:
        experiment.print_partition()
    folder.write(CONFIG, to_toml(config))
    for callback in followers:
        callback.on_begin(config, folder.path)

    trained = experiment.train_fedspzo(blocks)
    used = replace(trained.optimizer, at=config.optimizer.at)
    if config.optimizer.lr == "auto":  # its rates change, so no single value is right
        used = replace(used, lr="auto")
    folder.write(CONFIG, to_toml(replace(config, optimizer=used)))

    summary = _summary(config, splits.test, trained)
    summary |= by_class(trained.after, task.classes)
    bad = fault(summary, config, len(splits.test))
    if bad is not None:
        summary["fault"] = bad
    card = model_card(replace(config, optimizer=used), splits, recipe, summary)
    folder.save_model(partial(_fill, trained, task, saved, card))
    mezo_rows: list[Row] = []
    if config.mezo is not None:
        mezo = experiment.train_mezo(summary["forwards"], trained.rows[0]["digest"])
        mezo_rows = mezo.rows
        summary |= {f"mezo_{key}": mezo_rows[-1][key] for key in COSTS}
        summary |= {f"mezo_{key}": value for key, value in worth(mezo.after).items()}
    summary["threads"] = torch.get_num_threads()
    summary["seconds"] = round(time.perf_counter() - start, 2)
    title = f"{config.name}: {config.federation.clients} clients, {summary['rounds']} rounds"
    folder.write(FIGURE, figure_png(trained.rows, mezo_rows, title))
    folder.finish(summary)
    for callback in followers:
        callback.on_end(summary)
    if not quiet:
        print_table(summary, title)
        print_classes(summary)
        for line in _told(config, summary, experiment.threads, folder.path):
            print(line)
    return summary


def _fill(trained: Trained, task: Task, saved: SavedTask, card: str, folder: Path) -> None:
    """Write a model with its tokenizer, task and card to an empty folder."""
    save_pretrained(trained.model, task.tokenizer, folder)
    replace(saved, digest=trained.digest).write(folder)
    (folder / CARD).write_text(card, encoding="utf-8")


def _saved_task(config: Config, recipe: Recipe, task: Task, test: list[Encoded]) -> SavedTask:
    """Return the task as the model's folder keeps it, without the weights' digest."""
    names: dict[str, str] = {}
    if isinstance(task, HeadClassification):
        names = {label: task.classes[number] for label, number in task.labels.items()}
    return SavedTask.of(
        config,
        recipe,
        names=names,
        max_length=task.max_length,
        answer_tokens=longest_answer(test) if isinstance(task, Completion) else 0,
    )


def _told(config: Config, summary: Row, threads: Threads | None, folder: Path) -> Iterator[str]:
    """Yield what is printed below the tables."""
    for key, name in (("exact_match", "Exact match"), ("token_f1", "Token F1")):
        if key in summary:
            line = f"{name} of generated answers: {summary[key]:.1%}, before training"
            yield f"{line} {summary['zero_shot_' + key]:.1%}."
    if config.privacy is not None:
        spent = f"{largest_epsilon(summary):.3g}"
        yield f"No client has spent more than epsilon {spent} at delta {summary['delta']:g}."
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
    if threads is not None and threads.line:
        yield f"It was computed on {threads.line}."
    yield f"Model, metrics, config and figure are in {folder}"


def _summary(config: Config, test: list[Example], trained: Trained) -> Row:
    last = trained.rows[-1]
    summary = {"summary": True, **worth(trained.after)}
    summary |= {key: last[key] for key in (*COSTS, "fedavg_bytes", "digest")}
    if config.privacy is not None:
        summary |= {"epsilons": last["epsilons"], "delta": config.privacy.delta}
    summary |= {f"zero_shot_{key}": value for key, value in worth(trained.before).items()}
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
    summary["versions"]["python"] = platform.python_version()
    summary["machine"] = _machine(next(trained.model.parameters()).device)
    return summary


def _machine(device: torch.device) -> dict[str, str]:
    """Return what a run was computed on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "system": platform.platform(terse=True),
        "device": f"{device.type} ({name})",
        "kernels": str(fedspzo_kernels.serving(device.type)),
    }

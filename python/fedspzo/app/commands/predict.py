"""`fedspzo predict` and `fedspzo eval`: what a saved model predicts, and how well."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedspzo.errors import InputError

from .. import arguments as types
from ..data_section import ENCODINGS
from ..streams import say
from ..waiting import waiting

if TYPE_CHECKING:
    from ..saved_model import SavedModel
    from ..saved_task import SavedTask


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    predict = commands.add_parser("predict", help="what a fine-tuned model says of texts")
    predict.set_defaults(function=_predict)
    evaluate = commands.add_parser("eval", help="measure a fine-tuned model on a file")
    evaluate.set_defaults(function=_evaluate)
    for command in (predict, evaluate):
        command.add_argument("folder", type=types.path, metavar="DIR", help="a run's, or its model")
    predict.add_argument(
        "file", type=types.path, nargs="?", metavar="FILE", help="in place of stdin"
    )
    predict.add_argument(
        "--format", choices=("text", "jsonl", "csv"), default="text", help="of the output"
    )
    predict.add_argument(
        "--input",
        metavar="FORM",
        default="lines",
        help="what stdin holds: lines, or the ending of a data file, such as csv",
    )
    predict.add_argument(
        "--tokens", type=int, metavar="N", help="the most tokens of a text that is written"
    )
    evaluate.add_argument("file", type=types.path, metavar="FILE", help="rows with labels")
    evaluate.add_argument(
        "--format", choices=("text", "json"), default="text", help="of the output"
    )
    evaluate.add_argument("--label", metavar="FIELD", help="field with the label or answer")
    for command in (predict, evaluate):
        command.add_argument("--text", metavar="FIELD", help="field with the text or prompt")
        command.add_argument(
            "--encoding", choices=ENCODINGS, help="of a text file, in place of the run's"
        )
        command.add_argument(
            "--base", type=types.name, metavar="BASE", help="the base model of adapters"
        )
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _predict(options: argparse.Namespace) -> None:
    from ..prediction_inputs import read_texts

    if options.tokens is not None and options.tokens < 1:
        raise InputError(f"--tokens is {options.tokens}; give at least 1")
    saved = _saved(options)
    texts = read_texts(
        options.file, saved, form=options.input, text=options.text, encoding=options.encoding
    )
    opened = _open(options)
    from ..predictions import predict

    with waiting(f"predicting {len(texts)} texts"):
        rows = predict(opened, texts, options.tokens)
    _write(rows, options.format)


def _evaluate(options: argparse.Namespace) -> None:
    from ..prediction_inputs import read_examples

    saved = _saved(options)
    read = read_examples(
        options.file,
        saved,
        text=options.text,
        label=options.label,
        encoding=options.encoding,
    )
    examples = read.examples
    if read.skipped:
        line = f"{read.skipped} rows of '{options.file}' have no text or no label, and are skipped"
        say(f"fedspzo: {line}, as in the run")
    opened = _open(options)
    from ..evaluations import evaluate

    with waiting(f"measuring on {len(examples)} examples"):
        found = evaluate(opened, examples)
    if options.format == "json":
        print(json.dumps(found))
        return
    from ..printed_tables import print_classes

    loss = "not finite" if found["loss"] is None else f"{found['loss']:.3f}"
    line = f"accuracy {found['accuracy']:.1%}, loss {loss}, of {found['examples']} examples"
    print(f"{options.file}: {line}")
    for key, name in (("exact_match", "Exact match"), ("token_f1", "Token F1")):
        if key in found:
            print(f"{name} of generated answers: {found[key]:.1%}.")
    print_classes(found)


def _saved(options: argparse.Namespace) -> SavedTask:
    """Read the model's task, before torch is imported."""
    from ..saved_task import SavedTask, model_folder

    return SavedTask.read(model_folder(options.folder))


def _open(options: argparse.Namespace) -> SavedModel:
    ours = "OMP_NUM_THREADS" not in os.environ and "torch" not in sys.modules
    from ..saved_model import open_saved
    from ..threads import one_thread_if_small

    with waiting(f"loading {options.folder}"):
        opened = open_saved(options.folder, base=options.base, device=options.device)
    if ours:
        one_thread_if_small(opened.model)
    return opened


def _write(rows: Iterable[Mapping[str, Any]], form: str) -> None:
    """Print a line for each row."""
    if form == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    if sys.stdout is None:  # it is closed; print says nothing either
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(rows):
        shown = {key: value for key, value in row.items() if key != "probabilities"}
        if form == "csv":
            if number == 0:
                writer.writerow(shown)
            writer.writerow(shown.values())
        elif "answer" in row:
            print(" ".join(row["answer"].split()))
        else:
            print(f"{row['label']}\t{row['probability']:.4f}")

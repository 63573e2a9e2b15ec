"""The model card of a run's model: README.md of its folder, as the Hugging Face Hub reads it.

It has what the run measured, and says what that does not show. Of paths it has the last part alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fedspzo.errors import printable

from .config import Config, is_hub_id
from .data import Splits
from .human_bytes import human_bytes
from .metrics import largest_epsilon
from .recipe import Recipe, kind_of
from .sections import DEMO
from .sources import Source, format_of

CARD = "README.md"
_TAGS = ["fedspzo", "zeroth-order-optimization", "federated-learning"]
_PIPELINES = {
    "classification": "text-classification",
    "masked": "fill-mask",
    "causal": "text-generation",
}
_DATA_TYPES = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def model_card(config: Config, splits: Splits, recipe: Recipe, summary: Mapping[str, Any]) -> str:
    """Return the card of a run's model as Markdown, with the Hub's metadata before it.

    Args:
        config: the run's config, with the settings that were used.
        splits: its data.
        recipe: the options with which the base was loaded.
        summary: the last line of metrics.jsonl.
    """
    test = config.data.test or config.data.train
    results = [
        EvalResult(
            task_type=_PIPELINES[recipe.kind],
            dataset_type=_type(test),
            dataset_name=f"{_source_name(test)} ({len(splits.test)} examples)",
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=summary[key],
        )
        for key, kind, name in (
            ("accuracy", "accuracy", "accuracy"),
            ("macro_f1", "f1", "macro F1"),
            ("exact_match", "exact_match", "exact match"),
            ("token_f1", "f1", "token F1"),
            ("loss", "loss", "loss in nats"),
        )
        if summary.get(key) is not None
    ]
    data = ModelCardData(
        base_model=config.model.name if _is_on_hub(config) else None,
        library_name="transformers" if recipe.adapter is None else "peft",
        pipeline_tag=_PIPELINES[recipe.kind],
        tags=[*_TAGS, *(["lora"] if recipe.adapter is not None else [])],
        model_name=_name(config),
        eval_results=results,
    )
    parts = (
        _what(config),
        _use(config, recipe),
        _measured(config, splits, summary),
        _training(config, splits, recipe, summary),
        _replay(config, summary),
        _limits(config, splits, summary),
    )
    body = "\n\n".join("\n".join(part) for part in parts)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _source_name(source: Source) -> str:
    """Return the name of what [data] names, without the folders that hold it."""
    return source.name if isinstance(source, Path) else source.parts("test")[0]


def _type(source: Source) -> str:
    """Return the Hub's name of a dataset, or of a file's format."""
    if not isinstance(source, Path):
        return _source_name(source)
    return _DATA_TYPES.get(format_of(source), "text")


def code(text: object) -> str:
    """Return a text of the user's as code, on one line, as it can also stand in a table."""
    line = printable(str(text)).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    blank = " " if fence != "`" or line != line.strip() or not line else ""
    return f"{fence}{blank}{line}{blank}{fence}"


def _name(config: Config) -> str:
    """Return the name of the run's folder, which stays where the run goes on by --resume."""
    return config.output_dir.resolve().name or "model"


def _is_on_hub(config: Config) -> bool:
    name = config.model.name
    return name != DEMO and not Path(name).is_absolute() and is_hub_id(name)


def _base(config: Config) -> str:
    if config.model.name == DEMO:
        return "the demo model of the package `fedspzo`"
    if _is_on_hub(config):
        return f"[{config.model.name}](https://huggingface.co/{config.model.name})"
    return f"the model in the folder {code(Path(config.model.name).name)}"


def _what(config: Config) -> Iterator[str]:
    clients = config.federation.clients
    yield f"# {code(_name(config))}"
    yield ""
    yield (
        f"Fine-tuned from {_base(config)} by fedspzo ([arXiv"
        " 2502.10239](https://arxiv.org/abs/2502.10239)): zeroth order, forward passes alone, over"
        f" {clients} client{'s' if clients > 1 else ''} that exchange scalars."
    )


def _use(config: Config, recipe: Recipe) -> Iterator[str]:
    task = config.task
    yield "## Use"
    yield ""
    yield "    fedspzo predict DIR texts.txt    # a text a line; DIR is this folder"
    yield ""
    if recipe.adapter is not None:
        yield (
            "The folder holds LoRA adapters. `peft` opens them with their base:"
            " `PeftModel.from_pretrained(base, DIR)`. adapter_config.json says where the base was;"
            " where it is elsewhere, change `base_model_name_or_path`."
        )
    else:
        yield f'`transformers.pipeline("{_PIPELINES[recipe.kind]}", model=DIR)` opens it.'
    yield ""
    if task.type == "classification":
        yield f"The labels are {', '.join(code(label) for label in recipe.labels)}."
        if recipe.adapter is not None:
            yield (
                "The base does not know them: load it with `num_labels` and `id2label`, in this"
                " order. The new head is among the adapters' weights."
            )
    elif task.type == "prompt":
        yield from _prompt(config)
    elif task.type == "completion":
        turn = " as the user's turn of the chat template" if task.chat else ""
        yield (
            f"It continues a prompt{turn} with an answer, after a blank, and ends with the"
            " end-of-sequence token. Answers were generated greedily."
        )
    else:
        yield "It predicts each next token of a text."


def _prompt(config: Config) -> Iterator[str]:
    task = config.task
    where = "at the mask" if task.masked else "after it"
    turn = ", as the user's turn of the chat template" if task.chat else ""
    yield f"A text is put into the template {code(task.template)}{turn}."
    yield (
        f"The label is the one whose word scores highest {where}: by its logit, or, where a word is"
        " several tokens, by their mean log-probability. Other words do not count, whatever the"
        " pipeline writes."
    )
    yield ""
    yield "| label | word |"
    yield "| --- | --- |"
    for label, word in task.verbalizers.items():
        yield f"| {code(label)} | {code(word)} |"


def _measured(config: Config, splits: Splits, summary: Mapping[str, Any]) -> Iterator[str]:
    count = len(splits.test)
    yield "## Measured"
    yield ""
    name = code(_source_name(config.data.test or config.data.train))
    yield (
        f"On the {count} examples of {name}, which were not trained on."
        f" {splits.repeated or 'None'} of their texts are also in the training examples."
    )
    yield ""
    yield "| | before | after |"
    yield "| --- | --- | --- |"
    for key, name, form in (
        ("accuracy", "accuracy", ".1%"),
        ("loss", "loss (nats)", ".3f"),
        ("macro_f1", "macro F1", ".1%"),
        ("exact_match", "exact match of generated answers", ".1%"),
        ("token_f1", "token F1 of generated answers", ".1%"),
    ):
        if key in summary:
            both = (summary.get(f"zero_shot_{key}"), summary[key])
            before, after = ("" if value is None else f"{value:{form}}" for value in both)
            yield f"| {name} | {before} | {after} |"
    if "majority_accuracy" in summary:
        yield f"| always the commonest label | | {summary['majority_accuracy']:.1%} |"
    if "exact_match" in summary:
        yield ""
        yield f"Answers were generated for {min(config.task.metric_rows, count)} of the examples."
    if "validation_accuracy" in summary:
        yield ""
        yield f"The round was chosen by {len(splits.validation)} other examples."


def _training(
    config: Config, splits: Splits, recipe: Recipe, summary: Mapping[str, Any]
) -> Iterator[str]:
    federation, optimizer = config.federation, config.optimizer
    up, down = (human_bytes(summary[key]) for key in ("bytes_up", "bytes_down"))
    rates = optimizer.lr if isinstance(optimizer.lr, tuple) else (optimizer.lr,)
    rows = [
        ("task", code(config.task.type)),
        ("data", f"{len(splits.train)} examples of {code(_source_name(config.data.train))}"),
        ("clients", f"{federation.clients}, {federation.participants} in a round"),
        ("rounds", f"{summary['rounds']}; the weights are those of round {summary['kept_round']}"),
        ("local steps", f"{federation.local_steps}, of {federation.batch_size} examples"),
        ("estimator", f"{optimizer.estimator}, learning rate {', '.join(map(str, rates))}"),
        ("forward passes", f"{summary['forwards']:,.0f} of a batch, all clients together"),
        ("bytes to the server", f"{up}, all clients together"),
        ("bytes to the clients", f"{down}, all clients together"),
        ("federated averaging would send", f"{human_bytes(summary['fedavg_bytes'])}, each way"),
        ("seed", str(federation.seed)),
        ("versions", ", ".join(f"{name} {v}" for name, v in summary["versions"].items())),
    ]
    if recipe.adapter is not None:
        lora = recipe.adapter
        rows.insert(1, ("trained", f"LoRA adapters, r {lora.r}, alpha {lora.alpha}"))
    if config.privacy is not None:
        most = f"{largest_epsilon(summary):.3g}"
        rows.append(("privacy", f"epsilon {most} at delta {summary['delta']:g}, a client"))
    yield "## Training"
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    for name, value in rows:
        yield f"| {name} | {value} |"
    yield ""
    yield (
        "The clients were simulated in one process. The bytes are those of the encoded messages,"
        " without what a network adds."
    )


def _replay(config: Config, summary: Mapping[str, Any]) -> Iterator[str]:
    base = config.model.name if _is_on_hub(config) or config.model.name == DEMO else "BASE"
    yield "## The same bits again"
    yield ""
    yield f"The weights have the digest `{summary['kept_digest']}`."
    yield "The run's journal and the base give them again, and tell whether this folder has them:"
    yield ""
    yield f"    fedspzo replay {base} journal.fspz --round {summary['kept_round']} -o rebuilt"
    yield f"    fedspzo verify DIR journal.fspz --round {summary['kept_round']}"


def _limits(config: Config, splits: Splits, summary: Mapping[str, Any]) -> Iterator[str]:
    count = len(splits.test)
    yield "## What this does not show"
    yield ""
    if "fault" in summary:
        yield f"* **The run ended badly**: {code(summary['fault'])}"
    if kind_of(config.task) == "classification" or config.task.type == "prompt":
        share = summary["accuracy"]
        error = math.sqrt(share * (1 - share) / count)
        yield (
            f"* The accuracy is of one run with one seed. Chance alone moves it by {error:.1%} (the"
            f" standard error over {count} examples)."
        )
    else:
        yield "* The measures are of one run with one seed."
    yield (
        "* Nothing was measured on other text than that of the test file: other sources, other"
        " languages, texts made to mislead."
    )
    yield "* Nothing was measured of bias, safety or calibration. What the base has of these stays."
    if config.privacy is None:
        yield (
            "* Clients sent scalars and no text, which is no promise of privacy: scalars tell"
            " something of the data, and no noise was added."
        )
    else:
        yield (
            "* Epsilon bounds what the reports tell of one training example, under the assumptions"
            " of fedspzo's docs on privacy. It says nothing of the test examples."
        )
    yield "* The base model's licence applies, and the data's. This card grants none."

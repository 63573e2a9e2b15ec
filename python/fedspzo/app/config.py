"""The run's configuration: a TOML file is read into frozen dataclasses that check their values.

Each mistake in the file raises an `InputError` of one line that names key, value and remedy. This
module does not import torch, so that the line appears at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from fedspzo.errors import InputError
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.privacy import NOT_PRIVATE, Privacy

from .toml import build, check_keys, dump_value, read_toml, to_path

DEMO = "demo"
SUFFIXES = (".jsonl", ".csv")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The section [model].

    Attributes:
        name: a hub id, a local folder, or "demo" for the packaged model.
        dtype: dtype of the weights. Default "float32".
        device: device to train on. Default "auto": "cuda" if torch finds one, else "cpu".
    """

    name: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The section [task].

    Attributes:
        type: "prompt" classifies by the word that a language model predicts after the template, or
            at its {mask}. "classification" classifies by a head on the model. "lm" predicts each
            next token.
        template: prompt with {text} once, and {mask} at most once. Default "{text} It was".
        verbalizers: the word for each label. Only "prompt" has them, two or more.
        labels: the label of the checkpoint's head for a label of the data, where their names
            differ. Only "classification" has them. Default: none, the names are alike.
        new_head: train a new classification head, even if the checkpoint has one. Default False.

    Raises:
        ValueError: two values do not fit together; the message names the remedy.
    """

    type: Literal["prompt", "classification", "lm"]
    template: str = "{text} It was"
    verbalizers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    new_head: bool = False

    def __post_init__(self) -> None:
        for name in ("labels", "new_head"):
            if getattr(self, name) and self.type != "classification":
                raise ValueError(
                    f"{name} is given, but type = {self.type!r} has no use for it; "
                    "remove it or set type = 'classification'"
                )
        if self.labels and self.new_head:
            raise ValueError(
                "labels is given, but a new head has the labels of the data; remove labels, or "
                "new_head"
            )
        if self.type != "prompt":
            if self.verbalizers:
                raise ValueError(
                    f"verbalizers is given, but type = {self.type!r} has no use for it; "
                    "remove it or set type = 'prompt'"
                )
            return
        if len(self.verbalizers) < 2:
            raise ValueError(
                f"verbalizers has {len(self.verbalizers)} entries; give one word for each of two "
                "or more labels in [task.verbalizers]"
            )
        for label, word in self.verbalizers.items():
            if not word.strip():
                raise ValueError(f"verbalizers.{label} is {word!r}; give it a word")
        check_template(self.template)

    @property
    def masked(self) -> bool:
        """True if the template needs a masked language model."""
        return "{mask}" in self.template


def check_template(template: str) -> None:
    """Raise ValueError unless `template` has exactly one {text} and at most one {mask}."""
    names = _PLACEHOLDER.findall(template)
    for name in names:
        if name not in ("text", "mask"):
            raise ValueError(
                f"template is {template!r}; {{{name}}} is not known, use {{text}} and {{mask}}"
            )
    if names.count("text") != 1 or names.count("mask") > 1:
        raise ValueError(
            f"template is {template!r}; it needs {{text}} exactly once and {{mask}} at most once"
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The section [data].

    Attributes:
        train: a JSONL or CSV file with the training examples; or a folder with such a file for each
            client.
        test: a file with the held-out examples.
        validation: a file with examples by which the best round is chosen; or the share of the
            training examples that are set aside for this, of each label, by the run's seed. Default
            None: the last round counts.
        text: name of the field with the text. Default "text".
        label: name of the field with the label. Default "label".
        client: name of the field with the name of the client that has a training example. Default
            None: the examples are dealt, unless `train` is a folder.
        on_bad_row: "refuse" (default): a row without text or label is an error. "skip": it is left
            out, and counted.
        max_length: tokens to which an example is cut, at least 2. Default 128.
        max_repeated: largest share of the test texts that may also be training texts. Default 0.1.

    Raises:
        ValueError: a file is missing, has another suffix, or serves twice; `max_length` is below 2;
            or `max_repeated` or `validation` is no share.
    """

    train: Path
    test: Path
    validation: Path | float | None = None
    text: str = "text"
    label: str = "label"
    client: str | None = None
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    max_length: int = 128
    max_repeated: float = 0.1

    def __post_init__(self) -> None:
        used: dict[Path, str] = {}
        if self.client is not None and self.train.is_dir():
            raise ValueError(
                f"client is {self.client!r}, but train is a folder with a file for each client;"
                " remove client"
            )
        for name, path in self.files.items():
            if name == "train" and path.is_dir():
                continue
            if path.suffix.lower() not in SUFFIXES:
                raise ValueError(f"{name} is '{path}'; give a {' or '.join(SUFFIXES)} file")
            if not path.is_file():
                raise ValueError(f"{name} is '{path}', which is no file; correct the path")
            other = used.setdefault(path.resolve(), name)
            if other != name:
                raise ValueError(
                    f"{name} is '{path}', the same file as {other}; give examples never trained on"
                )
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(
                f"validation is {self.validation}; give a file, or a share between 0 and 1"
            )
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; give at least 2 tokens")
        if not 0 <= self.max_repeated <= 1:
            raise ValueError(f"max_repeated is {self.max_repeated}; give a share from 0 to 1")

    @property
    def owned(self) -> bool:
        """Each training example is a certain client's, so that they are not dealt."""
        return self.client is not None or self.train.is_dir()

    @property
    def files(self) -> dict[str, Path]:
        """The files by their keys."""
        files = {"train": self.train, "test": self.test}
        if isinstance(self.validation, Path):
            files["validation"] = self.validation
        return files


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """The section [output].

    Attributes:
        dir: folder for the results. Default None: runs/NAME.
        evaluate_every: number of rounds from one evaluation to the next, at least 1. Default None:
            `evaluation_interval`, for about twenty evaluations in a run.
        keep: "best": the weights of the round that is best on [data] validation are saved. "last":
            those of the last round. Default None: "best" with validation, else "last".
        patience: number of evaluations without a better round after which the run stops. Default
            None: it does not stop early.

    Raises:
        ValueError: `evaluate_every` or `patience` is below 1.
    """

    dir: Path | None = None
    evaluate_every: int | None = None
    keep: Literal["best", "last"] | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}; give at least 1 evaluation")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every is {self.evaluate_every}; give at least 1 round")


@dataclass(frozen=True, kw_only=True)
class MezoConfig:
    """The section [mezo]: a comparison run of MeZO, from the same start at the same computation.

    Attributes:
        lr: learning rate.
        eps: scale of the perturbations. Default None: by dtype.
        perturbations: number of directions in a step. Default 1.
        sides: "one" or "two". Default "two", as published (arXiv 2305.17333).
    """

    lr: float
    eps: float | None = None
    perturbations: int = 1
    sides: Literal["one", "two"] = "two"

    def __post_init__(self) -> None:
        self.optimizer()

    @property
    def forwards_per_step(self) -> int:
        """Number of full forward passes in a step: 2 P if two-sided, P + 1 if one-sided."""
        return 2 * self.perturbations if self.sides == "two" else self.perturbations + 1

    def optimizer(self) -> OptimizerConfig:
        """Return the comparison run's settings of the step."""
        return OptimizerConfig(
            estimator="mezo",
            lr=self.lr,
            eps=self.eps,
            perturbations=self.perturbations,
            sides=self.sides,
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a run.

    Attributes:
        name: name of the output folder: the file's stem, or NAME of NAME/config.toml.
        path: the file.
        model, task, data, federation, optimizer, output: the sections.
        mezo: section of the comparison run. Default None: no comparison.
        privacy: section of differential privacy. Default None: not private.

    Raises:
        ValueError: two sections do not fit together; the message names them and the remedy.
    """

    name: str
    path: Path
    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    federation: FederationConfig
    optimizer: OptimizerConfig
    mezo: MezoConfig | None = None
    privacy: Privacy | None = None
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.task.type == "lm" and self.federation.partition == "dirichlet":
            raise ValueError(
                "[federation] partition is 'dirichlet', which needs labels, and [task] type = 'lm' "
                "has none; set partition = 'iid'"
            )
        if self.privacy is not None and self.optimizer.lr == "auto":
            raise ValueError(f"[optimizer] {NOT_PRIVATE}")
        if self.data.owned and self.federation.partition != "iid":
            raise ValueError(
                f"[federation] partition is {self.federation.partition!r}, but [data] says which"
                " client has which examples; remove partition"
            )
        for name in ("keep", "patience"):
            if self.data.validation is None and getattr(self.output, name) not in (None, "last"):
                raise ValueError(
                    f"[output] {name} is {getattr(self.output, name)!r}, but no examples are set"
                    " aside to choose by; give [data] validation a file, or a share of train"
                )
        if self.privacy is not None and self.mezo is not None:
            raise ValueError(
                "[mezo] compares on the same data, which [privacy] would not count; remove [mezo], "
                "or [privacy]"
            )

    @property
    def output_dir(self) -> Path:
        """The folder of the results: [output] dir, or runs/NAME in the current folder."""
        return self.output.dir if self.output.dir is not None else Path("runs") / self.name

    @property
    def keeps_best(self) -> bool:
        """The weights of the best round are saved, in place of the last one's."""
        return self.data.validation is not None and self.output.keep != "last"

    def with_overrides(
        self, *, output: Path | None = None, seed: int | None = None, rounds: int | None = None
    ) -> Config:
        """Return the configuration with the command line's values in place of the file's.

        Args:
            output: folder of the results. Default None, here and below: the file's value.
            seed: the run's seed.
            rounds: number of rounds.

        Raises:
            InputError: a value is out of range.
        """
        changes = {
            key: value for key, value in (("seed", seed), ("rounds", rounds)) if value is not None
        }
        try:
            federation = replace(self.federation, **changes)  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(f"command line: {error}") from None
        folder = self.output if output is None else replace(self.output, dir=output)
        return replace(self, federation=federation, output=folder)


def evaluation_interval(rounds: int) -> int:
    """Return the default number of rounds between evaluations, for about twenty in a run."""
    return max(1, rounds // 20)


SECTIONS: dict[str, tuple[type, bool]] = {
    "model": (ModelConfig, True),
    "task": (TaskConfig, True),
    "data": (DataConfig, True),
    "federation": (FederationConfig, True),
    "optimizer": (OptimizerConfig, False),
    "mezo": (MezoConfig, False),
    "privacy": (Privacy, False),
    "output": (OutputConfig, False),
}
"""The sections by name: the dataclass, and True if the file must have the section."""


def load(path: str | Path) -> Config:
    """Read and check a TOML file. Relative paths in it start at its folder.

    Raises:
        InputError: the file has a mistake; one line names file, key, value and remedy.
    """
    path = Path(path)
    document = read_toml(path)
    check_keys(path, "", document, SECTIONS, [n for n, (_, need) in SECTIONS.items() if need])
    sections: dict[str, Any] = {}
    for name, (cls, needed) in SECTIONS.items():
        if name not in document and not (needed or name == "optimizer"):
            continue
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{path}: {name} is {table!r}; write it as a section, [{name}]")
        sections[name] = build(cls, path, name, table)
    sections["model"] = _resolve_model(path, sections["model"])
    name = path.resolve().parent.name if path.name == "config.toml" else path.stem
    try:
        return Config(name=name, path=path, **sections)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def is_hub_id(name: str) -> bool:
    """Return True if `name` has the form of a hub id, NAME or OWNER/NAME."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def _resolve_model(path: Path, model: ModelConfig) -> ModelConfig:
    """Make a local folder's path absolute, and check it. "demo" and hub ids stay as they are."""
    if model.name == DEMO:
        return model
    try:
        folder = to_path(model.name, path.parent)
    except TypeError as error:
        raise InputError(f"{path}: [model] name is {model.name!r}; give {error}") from None
    if not folder.is_dir():
        if is_hub_id(model.name) and not folder.exists():
            return model
        raise InputError(
            f"{path}: [model] name is {model.name!r}, which is no folder and no hub id; "
            "give a folder with config.json, a hub id, or 'demo'"
        )
    if not (folder / "config.json").is_file():
        remedy = "give a folder written by save_pretrained"
        raise InputError(f"{path}: [model] name: '{folder}' holds no config.json; {remedy}")
    if not any(folder.glob("*.safetensors")):
        remedy = "save the model with safe_serialization=True"
        raise InputError(f"{path}: [model] name: '{folder}' holds no .safetensors file; {remedy}")
    return replace(model, name=str(folder.resolve()))


def to_toml(config: Config) -> str:
    """Return the configuration as TOML, with all defaults filled in and all paths absolute."""
    lines: list[str] = []
    for name in SECTIONS:
        section = getattr(config, name)
        if section is None:
            continue
        tables: list[tuple[str, dict[str, str]]] = []
        lines.append(f"[{name}]")
        for f in fields(section):
            value = getattr(section, f.name)
            if isinstance(value, dict):
                tables.append((f.name, value))
            elif value is not None:
                lines.append(f"{f.name} = {dump_value(value)}")
        for key, table in tables:
            if table:
                lines += ["", f"[{name}.{key}]"]
                lines += [f"{dump_value(k)} = {dump_value(v)}" for k, v in table.items()]
        lines.append("")
    return "\n".join(lines)

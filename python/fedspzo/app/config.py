"""The run's configuration: a TOML file is read into frozen dataclasses that check their values.

Each mistake in the file raises an `InputError` of one line that names key, value and remedy. This
module does not import torch, so that the line appears at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedspzo.errors import InputError
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.privacy import Privacy, public_setting

from .arguments import check_unicode
from .data_section import DataConfig
from .model_section import ADAPTER_CONFIG, ModelConfig
from .sections import DEMO, EngineConfig, MezoConfig, OutputConfig, TaskConfig
from .toml import build, check_keys, dump_value, read_toml, to_path


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a run.

    Attributes:
        name: name of the output folder: the file's stem, or NAME of NAME/config.toml.
        path: the file.
        model, task, data, federation, optimizer, output: the sections.
        mezo: section of the comparison run. Default None: no comparison.
        privacy: section of differential privacy. Default None: not private.
        engine: section of the engine. Default None: in this process.

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
    engine: EngineConfig | None = None

    def __post_init__(self) -> None:
        if self.task.type in ("lm", "completion") and self.federation.partition == "dirichlet":
            raise ValueError(
                "[federation] partition is 'dirichlet', which needs labels, and [task] type ="
                f" {self.task.type!r} has none; set partition = 'iid'"
            )
        public = public_setting(self.optimizer.lr, self.optimizer.newton)
        if self.privacy is not None and public:
            raise ValueError(f"[optimizer] {public}")
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
        if self.privacy is not None and self.on_flower:
            raise ValueError(
                "[engine] name is 'flower', whose clients do not keep a privacy account between"
                " messages; remove [engine], or [privacy]"
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
    def on_flower(self) -> bool:
        """The clients run by Flower's simulation engine."""
        return self.engine is not None and self.engine.name == "flower"

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
    "engine": (EngineConfig, False),
}
"""The sections by name: the dataclass, and True if the file must have the section."""


def load(
    path: str | Path, replaced: Mapping[str, Mapping[str, str | None]] = MappingProxyType({})
) -> Config:
    """Read and check a TOML file. Relative paths in it start at its folder.

    Args:
        path: the file.
        replaced: values in place of the file's, by section and key. None: the key is left out.
            Default: none.

    Raises:
        InputError: the file has a mistake; one line names file, key, value and remedy.
    """
    path = Path(path)
    document = read_toml(path)
    check_unicode("config", path)
    check_keys(path, "", document, SECTIONS, [n for n, (_, need) in SECTIONS.items() if need])
    sections: dict[str, Any] = {}
    for name, (cls, needed) in SECTIONS.items():
        if name not in document and not (needed or name == "optimizer"):
            continue
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{path}: {name} is {table!r}; write it as a section, [{name}]")
        table = {**table, **replaced.get(name, {})}
        table = {key: value for key, value in table.items() if value is not None}
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
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{path}: [model] name: '{folder}' holds adapters and no whole model; name their base,"
            " or merge them into it with peft (merge_and_unload) and save that"
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
        tables: list[tuple[str, dict[str, Any]]] = []
        lines.append(f"[{name}]")
        for f in fields(section):
            value = getattr(section, f.name)
            if is_dataclass(value) and not isinstance(value, type):
                value = asdict(value)
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

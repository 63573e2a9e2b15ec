"""The options that load a run's model to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from fedspzo.checks import LIMIT_32, LIMIT_64, check_choice, check_text, check_whole

from .config import Config
from .data import Splits
from .model_section import LoraConfig, ModelConfig
from .sections import TaskConfig

Kind = Literal["causal", "masked", "classification"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options that load a model to the same bits. A journal's header keeps them.

    Attributes:
        dtype: dtype of the weights: "float32", "bfloat16" or "float16".
        kind: the model's head: "causal", "masked" or "classification".
        labels: labels of a classification head, in the order of its outputs. Default: none.
        seed: seed that initializes a classification head that is new. Default 0.
        new_head: a checkpoint's classification head is replaced by a new one. Default False: it is
            kept if there is one.
        rows: tokens whose rows of the output layer are separate parameters (`output_rows`).
            Default: none.
        adapter: the adapters that are added. Default None: none are.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    dtype: str
    kind: Kind
    labels: tuple[str, ...] = ()
    seed: int = 0
    new_head: bool = False
    rows: tuple[int, ...] = ()
    adapter: LoraConfig | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.new_head, bool):
            raise ValueError(f"new_head is {self.new_head!r}; give true or false")
        check_choice("dtype", self.dtype, get_args(get_type_hints(ModelConfig)["dtype"]))
        check_choice("kind", self.kind, get_args(Kind))
        check_whole("seed", self.seed, 0, LIMIT_64 - 1)
        for token in self.rows:
            check_whole("rows", token, 0, LIMIT_32 - 1)
        for label in self.labels:
            check_text("label", label)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe in a journal's header.

        Raises:
            ValueError, TypeError: it is none of this release.
        """
        lists = {name: tuple(values.get(name, ())) for name in ("labels", "rows")}
        adapter = values.get("adapter")
        if adapter is not None:
            names = adapter["target_modules"]
            names = tuple(names) if isinstance(names, list) else names
            adapter = LoraConfig(**{**adapter, "target_modules": names})
        return cls(**{**values, **lists, "adapter": adapter})

    @classmethod
    def of(cls, config: Config, splits: Splits) -> Recipe:
        """Return the recipe of a run's model, but for its `rows`.

        The labels are those of the data. A checkpoint's own head has others.
        """
        kind = kind_of(config.task)
        if kind != "classification":
            return cls(dtype=config.model.dtype, kind=kind, adapter=config.model.lora)
        return cls(
            dtype=config.model.dtype,
            kind=kind,
            labels=splits.labels,
            seed=config.federation.seed,
            new_head=config.task.new_head,
            adapter=config.model.lora,
        )

    @property
    def of_saved(self) -> Recipe:
        """The recipe that loads the model that a run with this one has saved.

        A whole model has its head then. Adapters are added to the base that the run had.
        """
        return self if self.adapter is not None else replace(self, new_head=False)


def kind_of(task: TaskConfig) -> Kind:
    """Return the kind of model that a task needs."""
    if task.type == "classification":
        return "classification"
    return "masked" if task.type == "prompt" and task.masked else "causal"

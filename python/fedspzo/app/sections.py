"""The sections of a run's configuration: frozen dataclasses that check their values.

[data] is in `data_section`; [federation], [optimizer] and [privacy] are in
`fedspzo.federated.settings` and `fedspzo.privacy`.
This module does not import torch, so that a mistake is reported at once.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Literal

from fedspzo.federated.settings import OptimizerConfig

DEMO = "demo"
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The section [task].

    Attributes:
        type: "prompt" classifies by the word that a language model predicts after the template, or
            at its {mask}. "classification" classifies by a head on the model. "lm" predicts each
            next token. "completion" continues a prompt with its answer.
        template: prompt with {text} once, and {mask} at most once. Default "{text} It was".
        verbalizers: the word for each label. Only "prompt" has them, two or more.
        labels: the label of the checkpoint's head for a label of the data, where their names
            differ. Only "classification" has them. Default: none, the names are alike.
        new_head: train a new classification head, even if the checkpoint has one. Default False.
        chat: the prompt is the user's turn, as the tokenizer's chat template writes it. Only
            "prompt", without {mask}, and "completion" have it. Default False.
        metric_rows: the most test examples whose answers are generated, before training and after.
            Only "completion" has it. Default 200. 0: none is.

    Raises:
        ValueError: two values do not fit together; the message names the remedy.
    """

    type: Literal["prompt", "classification", "lm", "completion"]
    template: str = "{text} It was"
    verbalizers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    new_head: bool = False
    chat: bool = False
    metric_rows: int = 200

    def __post_init__(self) -> None:
        for name, types in _USED_BY.items():
            if self.type not in types and getattr(self, name) != _TASK_DEFAULTS[name]:
                raise ValueError(
                    f"{name} is given, but type = {self.type!r} has no use for it; "
                    f"remove it or set type = {' or '.join(map(repr, types))}"
                )
        if self.metric_rows < 0:
            raise ValueError(f"metric_rows is {self.metric_rows}; give 0 or more examples")
        if self.labels and self.new_head:
            raise ValueError(
                "labels is given, but a new head has the labels of the data; remove labels, or "
                "new_head"
            )
        if self.type == "prompt":
            self._check_prompt()

    def _check_prompt(self) -> None:
        if self.chat and self.masked:
            raise ValueError(
                f"chat is given, but template is {self.template!r}, and a masked model has no"
                " turns; remove chat, or {mask}"
            )
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


_USED_BY: dict[str, tuple[str, ...]] = {
    "labels": ("classification",),
    "new_head": ("classification",),
    "verbalizers": ("prompt",),
    "template": ("prompt",),
    "chat": ("prompt", "completion"),
    "metric_rows": ("completion",),
}
"""The types that have a use for a key of [task]."""

_TASK_DEFAULTS: dict[str, object] = {
    one.name: {} if one.default is MISSING else one.default for one in fields(TaskConfig)
}


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
        report_to: names of what the metrics are also reported to (`callbacks`). Default None:
            nothing.

    Raises:
        ValueError: `evaluate_every` or `patience` is below 1.
    """

    dir: Path | None = None
    evaluate_every: int | None = None
    keep: Literal["best", "last"] | None = None
    patience: int | None = None
    report_to: tuple[Literal["tensorboard"], ...] | None = None

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

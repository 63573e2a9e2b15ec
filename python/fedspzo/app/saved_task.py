"""The task of a saved model, in a file of its folder: all that it takes to use the model.

This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fedspzo import __version__
from fedspzo.checks import LIMIT_32, check_text, check_whole
from fedspzo.errors import InputError, one_line

from .config import Config
from .data_section import Encoding, OnBadRow
from .recipe import Recipe, kind_of
from .rows import shown
from .run_folder import MODEL
from .sections import TaskConfig
from .toml import build, check_keys

TASK_FILE = "fedspzo.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The section "data" of the file: how rows are read and examples are cut.

    Attributes:
        text, label, prompt, answer: the names of the fields, as in [data].
        max_length: tokens to which an example is cut.
        encoding: encoding of the run's text files. Default: UTF-8.
        on_bad_row: what the run did with rows without text or label. Default: they were refused.
    """

    text: str = "text"
    label: str = "label"
    prompt: str = "prompt"
    answer: str = "answer"
    max_length: int
    encoding: Encoding = "utf-8"
    on_bad_row: OnBadRow = "refuse"

    def __post_init__(self) -> None:
        check_whole("max_length", self.max_length, 2, LIMIT_32)


@dataclass(frozen=True, kw_only=True)
class SavedTask:
    """What a saved model was trained to do.

    Attributes:
        task: the section [task]. Its `labels` has each label of the data, and `new_head` is False.
        data: the fields of a row, and the length of an example.
        recipe: the options that load the model from its folder.
        digest: digest of the weights, base and adapters together. "" before training.
        answer_tokens: the most tokens of an answer in the run's test examples. 0: it has none.
    """

    task: TaskConfig
    data: Fields
    recipe: Recipe
    digest: str = ""
    answer_tokens: int = 0

    @classmethod
    def of(
        cls,
        config: Config,
        recipe: Recipe,
        *,
        names: Mapping[str, str],
        max_length: int,
        answer_tokens: int,
    ) -> SavedTask:
        """Return the task of a run's model, before training.

        Args:
            config: the run's config.
            recipe: the options with which the model was loaded.
            names: the head's label for each label of the data; empty without such a head.
            max_length: tokens to which examples were cut.
            answer_tokens: as the attribute.
        """
        data = config.data
        return cls(
            task=replace(config.task, labels=dict(names), new_head=False),
            data=Fields(
                text=data.text,
                label=data.label,
                prompt=data.prompt,
                answer=data.answer,
                max_length=max_length,
                encoding=data.encoding,
                on_bad_row=data.on_bad_row,
            ),
            recipe=recipe.of_saved,
            answer_tokens=answer_tokens,
        )

    def in_header(self) -> str:
        """Return what a journal's header keeps, beside the recipe of the base.

        It is JSON inside of JSON, as a header's keys are sorted, and the labels have an order.
        """
        return json.dumps(self._own())

    def _own(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "task": _given(self.task),
            "data": asdict(self.data),
            "answer_tokens": self.answer_tokens,
        }

    @classmethod
    def from_header(
        cls, path: Path, kept: object, recipe: Mapping[str, Any], digest: str
    ) -> SavedTask:
        """Return the task of a model that a journal's records led to.

        Args:
            path: the journal, for messages.
            kept: what `in_header` returned.
            recipe: the base's recipe in the header.
            digest: digest of the model's weights.

        Raises:
            InputError: a value is wrong.
        """
        try:
            own = json.loads(kept) if isinstance(kept, str) else None
        except (ValueError, RecursionError):
            own = None
        if not isinstance(own, dict):
            raise InputError(f"{path}: the task in its header is no JSON object; restore it")
        found = cls._of(path, {**own, "model": dict(recipe), "digest": digest})
        return replace(found, recipe=found.recipe.of_saved)

    def write(self, folder: Path) -> None:
        """Write the file to a model's folder."""
        document = {
            "program": f"fedspzo {__version__}",
            **self._own(),
            "model": asdict(self.recipe),
            "digest": self.digest,
        }
        content = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (folder / TASK_FILE).write_text(content, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> SavedTask:
        """Read the file of a model's folder.

        Raises:
            InputError: there is none, or a value is wrong; one line names it and the remedy.
        """
        path = folder / TASK_FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"'{folder}': holds no {TASK_FILE}; name the folder 'model' that 'fedspzo run'"
                " writes"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise InputError(f"{path}: cannot be read ({reason}); restore it") from None
        if not isinstance(document, dict):
            raise InputError(f"{path}: is no JSON object; restore it")
        return cls._of(path, document)

    @classmethod
    def _of(cls, path: Path, document: dict[str, Any]) -> SavedTask:
        """Check a document, and return the task in it."""
        if document.get("format") != FORMAT:
            raise InputError(
                f"{path}: format is {shown(document.get('format'))}, this release reads {FORMAT};"
                " use the release that wrote it"
            )
        needed = ["format", "task", "data", "model", "answer_tokens", "digest"]
        check_keys(path, "", document, dict.fromkeys(["program", *needed]), needed)
        for name in ("task", "data", "model"):
            if not isinstance(document[name], dict):
                raise InputError(f"{path}: {name} is no JSON object; restore it")
        try:
            check_text("digest", document["digest"])
            check_whole("answer_tokens", document["answer_tokens"], 0, LIMIT_32)
            recipe = Recipe.from_json(document["model"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: {one_line(error)}; restore it") from None
        task = build(TaskConfig, path, "task", document["task"])
        if recipe.kind != kind_of(task):
            raise InputError(
                f"{path}: model.kind is {recipe.kind!r}, but the task needs {kind_of(task)!r};"
                " restore it"
            )
        return cls(
            task=task,
            data=build(Fields, path, "data", document["data"]),
            recipe=recipe,
            digest=document["digest"],
            answer_tokens=document["answer_tokens"],
        )


def model_folder(folder: Path) -> Path:
    """Return the model's folder in a run's folder, or the folder itself."""
    inner = folder / MODEL
    return inner if inner.is_dir() else folder


def _given(task: TaskConfig) -> dict[str, Any]:
    """Return the keys of [task] that are not at their defaults."""
    given = {}
    for one in fields(task):
        default = {} if one.default is MISSING else one.default
        if getattr(task, one.name) != default:
            given[one.name] = getattr(task, one.name)
    return given

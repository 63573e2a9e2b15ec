"""Loads a pretrained model with its tokenizer, as a recipe says.

Weights are read from safetensors files alone. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fedspzo.blocks.output_rows import untie_rows
from fedspzo.checks import LIMIT_32, LIMIT_64, check_choice, check_text, check_whole
from fedspzo.errors import InputError, one_line

from .config import Config
from .data import Splits
from .sections import DEMO, ModelConfig
from .weight_files import check_weight_files

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

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    dtype: str
    kind: Kind
    labels: tuple[str, ...] = ()
    seed: int = 0
    new_head: bool = False
    rows: tuple[int, ...] = ()

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
        return cls(**{**values, **lists})

    @classmethod
    def of(cls, config: Config, splits: Splits) -> Recipe:
        """Return the recipe of a run's model, but for its `rows`.

        The labels are those of the data. A checkpoint's own head has others.
        """
        if config.task.type == "classification":
            return cls(
                dtype=config.model.dtype,
                kind="classification",
                labels=splits.labels,
                seed=config.federation.seed,
                new_head=config.task.new_head,
            )
        masked = config.task.type == "prompt" and config.task.masked
        return cls(dtype=config.model.dtype, kind="masked" if masked else "causal")


@dataclass(frozen=True)
class Source:
    """The place from which a model is loaded.

    Attributes:
        name: a folder, a hub id, or "demo", as the user gave it.
        place: the folder or hub id.
        offline: the hub is out of reach, and the cache alone is used.
        headed: True if the model is known to have a classification head, False if it is known to
            have none. Default None: either may be.
    """

    name: str
    place: str
    offline: bool
    headed: bool | None = None

    @classmethod
    def of(cls, name: str) -> Source:
        """Find the place of a model. Sends the hub one request, if `name` is a hub id."""
        place = str(files("fedspzo.demo") / "model") if name == DEMO else name
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        return cls(name, place, not Path(place).is_dir() and _hub_is_out_of_reach(place))

    def config(self) -> Any:
        """Read the model's config."""
        with self.explained():
            return AutoConfig.from_pretrained(
                self.place, local_files_only=self.offline, trust_remote_code=False
            )

    def head(self) -> tuple[str, ...]:
        """Return the labels of the model's classification head. Empty: it has no such head."""
        config = self.config()
        with self.explained():
            if not any(name.endswith(_HEADED) for name in config.architectures or []):
                return ()
            return tuple(str(config.id2label[number]) for number in sorted(config.id2label))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what a loader raises into an InputError of one line.

        A loader may raise anything, since it reads files of which each value may be wrong.
        """
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            _explain(self, error)


_HEADED = "ForSequenceClassification"


def pretrained(name: str, recipe: Recipe) -> tuple[Any, Any]:
    """Load a model onto the CPU, in evaluation mode, with its tokenizer.

    Args:
        name: a folder, a hub id, or "demo".
        recipe: the options of loading.

    Raises:
        InputError: the model cannot be loaded, or is of another kind.
    """
    return load_from(Source.of(name), recipe)


def load_from(source: Source, recipe: Recipe) -> tuple[Any, Any]:
    """Load a model as `pretrained` does, from a place that was found."""
    name = source.name
    if Path(source.place).is_dir():
        itemsize = getattr(torch, recipe.dtype).itemsize
        check_weight_files(Path(source.place), source.config(), itemsize)
    with source.explained():
        tokenizer = AutoTokenizer.from_pretrained(
            source.place, local_files_only=source.offline, trust_remote_code=False
        )
        model = _from_pretrained(source, recipe)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        # its perturbed weights could not be saved; this is told before the first round
        method = quantizer.quantization_config.quant_method
        raise InputError(
            f"[model] name is {name!r}, whose config says that it is quantized"
            f" ({getattr(method, 'value', method)}); give a model with float32, bfloat16 or float16"
            " weights"
        )
    model.eval()
    if recipe.rows:
        _untie(name, model, recipe.rows)
    if model.config.pad_token_id is None:
        # a classification head of a causal model needs it to find a row's last token
        pad = tokenizer.pad_token_id
        model.config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
    return model, tokenizer


def _untie(name: str, model: nn.Module, rows: Sequence[int]) -> None:
    try:
        untie_rows(model, rows)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name!r} is not the journal's model: {error}") from None


def _hub_is_out_of_reach(name: str) -> bool:
    """Send one request to the hub, and return True if it fails.

    The cache alone is used then, which saves a minute of retries.
    """
    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError:
        return False  # the hub answered, and loading will give the reason
    except (HTTPError, OSError):
        return True
    return False


def _from_pretrained(source: Source, recipe: Recipe) -> Any:
    options = {
        "local_files_only": source.offline,
        "trust_remote_code": False,  # by default transformers would ask the user
        "dtype": getattr(torch, recipe.dtype),
        "use_safetensors": True,
        "output_loading_info": True,
    }
    name = source.name
    if recipe.kind == "classification":
        return _classifier(source, recipe, options)
    masked = recipe.kind == "masked"
    _check_kind(name, masked, source.config().architectures or [])
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(source.place, **options)
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"[model] name is {name!r}, whose weights lack "
            f"{min(report['missing_keys'])!r} and so would predict at random; name a model with "
            "its language-modelling head, or set [task] type = 'classification'"
        )
    return model


def _classifier(source: Source, recipe: Recipe, options: dict[str, Any]) -> Any:
    """Load a classifier. A head that is new is initialized from the recipe's seed."""
    labels = dict(enumerate(recipe.labels))
    options |= {
        "num_labels": len(labels),
        "id2label": labels,
        "label2id": {label: number for number, label in labels.items()},
    }
    if recipe.new_head:
        options["ignore_mismatched_sizes"] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(source.place, **options)
        model, report = loaded
        if recipe.new_head:
            _replace_head(model)
    missing = report["missing_keys"]
    if source.headed and missing:
        raise InputError(
            f"[model] name is {source.name!r}, whose config says that it has a classification head"
            f" but whose weights lack {min(missing)!r}; set [task] new_head = true"
        )
    if source.headed is False and not missing and not recipe.new_head:
        raise InputError(
            f"[model] name is {source.name!r}, whose weights have a classification head but whose"
            f" config.json does not say so; add its architecture ({type(model).__name__}) and"
            " id2label there, or set [task] new_head = true"
        )
    return model


def _replace_head(model: Any) -> None:
    """Replace everything but the base model by new modules, initialized from torch's seed."""
    new: Any = AutoModelForSequenceClassification.from_config(model.config)
    for name, module in new.named_children():
        if name != model.base_model_prefix:
            setattr(model, name, module.to(model.dtype))


def _check_kind(name: str, masked: bool, architectures: list[str]) -> None:
    for architecture in architectures:
        if masked and architecture.endswith(("ForCausalLM", "LMHeadModel")):
            remedy = "name a masked model, or remove {mask} from [task] template"
        elif not masked and architecture.endswith("ForMaskedLM"):
            remedy = "name a causal model, or put {mask} into [task] template"
        else:
            continue
        raise InputError(f"[model] name is {name!r}, a {architecture}; {remedy}")


def _explain(source: Source, error: Exception) -> NoReturn:
    reason = one_line(error) or type(error).__name__
    if not isinstance(error, OSError | ValueError | ImportError | SafetensorError):
        reason = f"{type(error).__name__}: {reason}"
    if source.offline and isinstance(error, OSError):
        reason = "the hub is out of reach and no complete copy is cached"
    if len(reason) > 200:
        reason = reason[:200].rstrip() + " ..."
    raise InputError(
        f"[model] name is {source.name!r}, which does not load: {reason}; check the name and the "
        "connection, or give a local folder written by save_pretrained"
    ) from None

"""Loads a pretrained model with its tokenizer, and creates the task.

Weights are read from safetensors files alone. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

from fedspzo.blocks.output_rows import has_linear_output, untie_rows
from fedspzo.checks import LIMIT_32, LIMIT_64, check_choice, check_text, check_whole
from fedspzo.errors import InputError, one_line

from .config import DEMO, Config, ModelConfig
from .data import Splits
from .tasks import HeadClassification, LanguageModelling, PromptClassification, Task

Kind = Literal["causal", "masked", "classification"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options that load a model to the same bits. A journal's header keeps them.

    Attributes:
        dtype: dtype of the weights: "float32", "bfloat16" or "float16".
        kind: the model's head: "causal", "masked" or "classification".
        labels: labels of a classification head, in the order of its outputs. Default: none.
        seed: seed that initializes a classification head that the checkpoint lacks. Default 0.
        rows: tokens whose rows of the output layer are separate parameters (`output_rows`).
            Default: none.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    dtype: str
    kind: Kind
    labels: tuple[str, ...] = ()
    seed: int = 0
    rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, get_args(get_type_hints(ModelConfig)["dtype"]))
        check_choice("kind", self.kind, get_args(Kind))
        check_whole("seed", self.seed, 0, LIMIT_64 - 1)
        for token in self.rows:
            check_whole("rows", token, 0, LIMIT_32 - 1)
        for label in self.labels:
            check_text("label", label)

    @classmethod
    def of(cls, config: Config, splits: Splits) -> Recipe:
        """Return the recipe of a run's model, but for its `rows`."""
        if config.task.type == "classification":
            return cls(
                dtype=config.model.dtype,
                kind="classification",
                labels=splits.labels,
                seed=config.federation.seed,
            )
        masked = config.task.type == "prompt" and config.task.masked
        return cls(dtype=config.model.dtype, kind="masked" if masked else "causal")


def load(config: Config, splits: Splits) -> tuple[nn.Module, Task, Recipe]:
    """Load the config's model onto its device, in evaluation mode, and create its task.

    The rows of a prompt's verbalizers become separate parameters of the output layer. A
    classification head that the checkpoint lacks is initialized from [federation] seed, so that
    all participants start from the same bits.

    Raises:
        InputError: the model cannot be loaded, or does not fit the task.
    """
    name = config.model.name
    device = _device(config)
    recipe = Recipe.of(config, splits)
    model, tokenizer = pretrained(name, recipe)
    model.to(device)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"[model] name is {name!r}, whose tokenizer has {len(tokenizer)} tokens but whose "
            f"model has {rows}; name a model saved with its own tokenizer"
        )
    task = _task(config, splits, tokenizer, _longest(config, model, tokenizer))
    if isinstance(task, PromptClassification) and has_linear_output(model):
        recipe = replace(recipe, rows=tuple(task.words.tolist()))
        untie_rows(model, recipe.rows)
    return model, task, recipe


def pretrained(name: str, recipe: Recipe) -> tuple[Any, Any]:
    """Load a model onto the CPU, in evaluation mode, with its tokenizer.

    Args:
        name: a folder, a hub id, or "demo".
        recipe: the options of loading.

    Raises:
        InputError: the model cannot be loaded, or is of another kind.
    """
    source = str(files("fedspzo.demo") / "model") if name == DEMO else name
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    offline = not Path(source).is_dir() and _hub_is_out_of_reach(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, local_files_only=offline, trust_remote_code=False
        )
        model = _from_pretrained(name, recipe, source, offline)
    except InputError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        _explain(name, error, offline)
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


def _device(config: Config) -> str:
    there = torch.cuda.is_available()
    if config.model.device == "cuda" and not there:
        raise InputError(
            '[model] device is "cuda", but torch finds no CUDA device; set "cpu" or "auto"'
        )
    return "cuda" if there and config.model.device != "cpu" else "cpu"


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


def _from_pretrained(name: str, recipe: Recipe, source: str, offline: bool) -> Any:
    options: dict[str, Any] = {
        "local_files_only": offline,
        "dtype": getattr(torch, recipe.dtype),
        "use_safetensors": True,
        "trust_remote_code": False,  # by default transformers would ask the user
    }
    if recipe.kind == "classification":
        options["num_labels"] = len(recipe.labels)
        options["id2label"] = dict(enumerate(recipe.labels))
        options["label2id"] = {label: number for number, label in enumerate(recipe.labels)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return AutoModelForSequenceClassification.from_pretrained(source, **options)
    masked = recipe.kind == "masked"
    _check_kind(name, masked, _architectures(source, offline))
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(source, output_loading_info=True, **options)
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"[model] name is {name!r}, whose weights lack "
            f"{min(report['missing_keys'])!r} and so would predict at random; name a model with "
            "its language-modelling head, or set [task] type = 'classification'"
        )
    return model


def _architectures(source: str, offline: bool) -> list[str]:
    config = AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    return config.architectures or []


def _check_kind(name: str, masked: bool, architectures: list[str]) -> None:
    for architecture in architectures:
        if masked and architecture.endswith(("ForCausalLM", "LMHeadModel")):
            remedy = "name a masked model, or remove {mask} from [task] template"
        elif not masked and architecture.endswith("ForMaskedLM"):
            remedy = "name a causal model, or put {mask} into [task] template"
        else:
            continue
        raise InputError(f"[model] name is {name!r}, a {architecture}; {remedy}")


def _explain(name: str, error: Exception, offline: bool) -> NoReturn:
    reason = one_line(error)
    if offline and isinstance(error, OSError):
        reason = "the hub is out of reach and no complete copy is cached"
    if len(reason) > 200:
        reason = reason[:200].rstrip() + " ..."
    raise InputError(
        f"[model] name is {name!r}, which does not load: {reason}; check the name and the "
        "connection, or give a local folder written by save_pretrained"
    ) from None


def _longest(config: Config, model: Any, tokenizer: Any) -> int:
    """Return the most tokens of an example: [data] max_length, or the model's limit if smaller."""
    limits = [config.data.max_length, tokenizer.model_max_length]
    positions = getattr(model.config, "max_position_embeddings", None)
    return int(min(limits if positions is None else [*limits, positions]))


def _task(config: Config, splits: Splits, tokenizer: Any, max_length: int) -> Task:
    task = config.task
    if task.type == "prompt":
        return PromptClassification(tokenizer, task.template, task.verbalizers, max_length)
    if task.type == "classification":
        return HeadClassification(tokenizer, splits.labels, max_length)
    return LanguageModelling(tokenizer, max_length)

"""Loading a pretrained model with its tokenizer, and the task they serve.

Weights come from safetensors files alone; nothing is unpickled.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from .config import DEMO, Config
from .data import Splits
from .tables import InputError, one_line
from .tasks import HeadClassification, LanguageModelling, PromptClassification, Task


def load(config: Config, splits: Splits) -> tuple[nn.Module, Task]:
    """The config's model, in evaluation mode on its device, and its task.

    A classification head the checkpoint lacks is initialised from [federation] seed: every
    participant then starts from the same bits.

    Raises:
        InputError: if the model cannot be had, or does not fit the task.
    """
    name = config.model.name
    source = str(files("fedspzo.demo") / "model") if name == DEMO else name
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    offline = not Path(source).is_dir() and _hub_is_out_of_reach(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline)
        model = _from_pretrained(config, splits, source, offline)
    except InputError:
        raise
    except (OSError, ValueError, ImportError) as error:
        _explain(name, error, offline)
    model.eval().to(_device(config))
    if model.config.pad_token_id is None:
        # Heads of causal models look for it to find a row's last token.
        pad = tokenizer.pad_token_id
        model.config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"[model] name is {name!r}, whose tokenizer has {len(tokenizer)} tokens but whose "
            f"model has {rows}; name a model saved with its own tokenizer"
        )
    return model, _task(config, splits, tokenizer, _longest(config, model, tokenizer))


def _device(config: Config) -> str:
    there = torch.cuda.is_available()
    if config.model.device == "cuda" and not there:
        raise InputError(
            '[model] device is "cuda", but torch finds no CUDA device; set "cpu" or "auto"'
        )
    return "cuda" if there and config.model.device != "cpu" else "cpu"


def _hub_is_out_of_reach(name: str) -> bool:
    """Whether one request fails: then only the cache is asked, which spares a minute of retries."""
    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError:
        return False  # The hub answered; loading tells what is wrong.
    except (HTTPError, OSError):
        return True
    return False


def _from_pretrained(config: Config, splits: Splits, source: str, offline: bool) -> Any:
    options: dict[str, Any] = {
        "local_files_only": offline,
        "dtype": getattr(torch, config.model.dtype),
        "use_safetensors": True,
    }
    if config.task.type == "classification":
        options["num_labels"] = len(splits.labels)
        options["id2label"] = dict(enumerate(splits.labels))
        options["label2id"] = {label: number for number, label in enumerate(splits.labels)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.federation.seed)
            return AutoModelForSequenceClassification.from_pretrained(source, **options)
    masked = config.task.type == "prompt" and config.task.masked
    _check_kind(config, masked, _architectures(source, offline))
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(source, output_loading_info=True, **options)
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"[model] name is {config.model.name!r}, whose weights lack "
            f"{min(report['missing_keys'])!r} and so would predict at random; name a model with "
            "its language-modelling head, or set [task] type = 'classification'"
        )
    return model


def _architectures(source: str, offline: bool) -> list[str]:
    return AutoConfig.from_pretrained(source, local_files_only=offline).architectures or []


def _check_kind(config: Config, masked: bool, architectures: list[str]) -> None:
    for architecture in architectures:
        if masked and architecture.endswith(("ForCausalLM", "LMHeadModel")):
            remedy = "name a masked model, or remove {mask} from [task] template"
        elif not masked and architecture.endswith("ForMaskedLM"):
            remedy = "name a causal model, or put {mask} into [task] template"
        else:
            continue
        raise InputError(f"[model] name is {config.model.name!r}, a {architecture}; {remedy}")


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
    """Tokens of an example: [data] max_length, or what the model can take if that is less."""
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

"""Loads a pretrained model with its tokenizer, as a recipe says.

Weights are read from safetensors files alone. Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fedspzo.blocks.output_rows import merge_rows, untie_rows
from fedspzo.errors import InputError

from .adapters import (
    add_adapters,
    base_of,
    is_adapter,
    load_adapters,
    save_adapters,
)
from .config import is_hub_id
from .model_section import ADAPTER_CONFIG
from .model_source import Source
from .recipe import Recipe
from .weight_files import check_weight_files


def pretrained(name: str, recipe: Recipe) -> tuple[Any, Any]:
    """Load a model onto the CPU, in evaluation mode, with its tokenizer.

    Args:
        name: a folder, a hub id, or "demo". With adapters in the recipe it is the base, which gets
            new ones, or a folder of adapters, which names its base.
        recipe: the options of loading.

    Raises:
        InputError: the model cannot be loaded, or is of another kind.
    """
    return load_from(Source.of(name), recipe)


def load_from(source: Source, recipe: Recipe, base: str | None = None) -> tuple[Any, Any]:
    """Load a model as `pretrained` does, from a place that was found.

    Args:
        source: the place.
        recipe: the options of loading.
        base: the base of a folder of adapters. Default None: the one that the folder names.
    """
    with source.explained():
        tokenizer = AutoTokenizer.from_pretrained(
            source.place, local_files_only=source.offline, trust_remote_code=False
        )
    folder = Path(source.place)
    if recipe.adapter is None or not is_adapter(folder):
        model, new = _whole(source, recipe)
        if recipe.adapter is not None:
            model = add_adapters(model, recipe.adapter, recipe.kind, source.name, new)
    else:
        root = Source.of(_checked(folder, base_of(folder) if base is None else base))
        model, new = _whole(root, recipe)
        model = add_adapters(model, recipe.adapter, recipe.kind, root.name, new)
        load_adapters(model, folder)
    if model.config.pad_token_id is None:
        # a classification head of a causal model needs it to find a row's last token
        pad = tokenizer.pad_token_id
        model.config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
    return model, tokenizer


def _checked(folder: Path, base: str) -> str:
    """Return the base of a folder's adapters. Raise InputError if it can be none."""
    if not os.path.isdir(base) and not is_hub_id(base):  # False for a name that is too long
        raise InputError(
            f"'{folder}': the base of its adapters is {base!r}, which is no folder and no hub id;"
            f" give it by --base, or correct base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    return base


def save_pretrained(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model, or its adapters, and the tokenizer to an empty folder.

    A prompt's rows become part of an ordinary output layer (`merge_rows`).
    """
    merge_rows(model)
    if hasattr(model, "peft_config"):
        save_adapters(model, folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _whole(source: Source, recipe: Recipe) -> tuple[Any, tuple[str, ...]]:
    """Load a model without adapters, and name its modules that the checkpoint lacks."""
    name = source.name
    if os.path.isdir(source.place):
        itemsize = getattr(torch, recipe.dtype).itemsize
        check_weight_files(Path(source.place), source.config(), itemsize)
    with source.explained():
        model, new = _from_pretrained(source, recipe)
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
    return model, new


def _untie(name: str, model: nn.Module, rows: Sequence[int]) -> None:
    try:
        untie_rows(model, rows)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name!r} is not the journal's model: {error}") from None


def _from_pretrained(source: Source, recipe: Recipe) -> tuple[Any, tuple[str, ...]]:
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
    return model, ()


def _classifier(
    source: Source, recipe: Recipe, options: dict[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    """Load a classifier. What is new of it is initialized from the recipe's seed, and named."""
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
    base = f"{model.base_model_prefix}."
    heads = [name for name, _ in model.named_parameters() if not name.startswith(base)]
    new = (*missing, *(heads if recipe.new_head else ()))
    # a head is new as a whole; of the base model it may be a pooler
    return model, tuple(
        sorted({k.rpartition(".")[0] if k.startswith(base) else k.split(".")[0] for k in new})
    )


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

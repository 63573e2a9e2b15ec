"""LoRA adapters by peft: they follow from a seed, and are saved and opened as PEFT does it.

What a seed gives is our own noise, not torch's: the same bits on every machine and release.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedspzo.errors import InputError, explained, one_line
from fedspzo.seeds import derive
from fedspzo_kernels import parameter_key, perturb_

from .installed import check_installed
from .model_section import ADAPTER_CONFIG, LoraConfig
from .recipe import Kind

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TASK_TYPES = {"causal": "CAUSAL_LM", "classification": "SEQ_CLS", "masked": None}
"""PEFT's names. With "SEQ_CLS" it trains and saves `_HEADS` beside the adapters."""
_HEADS = ("classifier", "score")


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds adapters in place of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Return the base model that a folder's adapters belong to: a path or a hub id.

    Raises:
        InputError: adapter_config.json does not name it.
    """
    path = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        name = settings["base_model_name_or_path"]
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise ValueError("it is no name")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{path}: has no base_model_name_or_path that names the base model; add it"
        ) from None
    return name


def add_adapters(
    model: nn.Module, settings: LoraConfig, kind: Kind, name: str, new: Sequence[str] = ()
) -> Any:
    """Add adapters to a model, and freeze its own weights, but for a classification head.

    Args:
        model: a Hugging Face model on the CPU, which is changed in place.
        settings: the adapters.
        kind: the model's head.
        name: the model, for the message.
        new: names of modules that the checkpoint lacks, such as a classifier's pooler. They train
            and are saved, as nobody else could have them. Default: none.

    Returns:
        The `peft.PeftModel`, in evaluation mode.

    Raises:
        InputError: the model has no such layers, or none that peft adapts; or there is no peft.
    """
    check_installed("an adapter", "peft", "peft")
    import peft

    names = settings.target_modules
    with (
        explained(
            f"[model.lora] target_modules is {names!r}, which does not fit {name!r}",
            "name layers that the model has",
        ),
        torch.random.fork_rng(devices=[]),
    ):
        config = peft.LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            target_modules=names if isinstance(names, str) else list(names),
            task_type=_TASK_TYPES[kind],
            modules_to_save=[one for one in new if one not in _HEADS] or None,
        )
        # weights of one dtype, so that what follows from [model] dtype is the same for all
        adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        _initialize(adapted, derive(settings.seed))
    return adapted.eval()


@torch.no_grad()
def _initialize(adapted: nn.Module, seed: int) -> None:
    """Draw the factors that do not begin at 0 from our own noise, with PEFT's variance."""
    for name, weight in adapted.named_parameters():
        if ".lora_A." in name:  # U(-1 / sqrt(n), 1 / sqrt(n)), of n inputs
            deviation = 1 / math.sqrt(3 * weight[0].numel())
        elif ".lora_embedding_B." in name:
            deviation = 1.0
        else:
            continue
        signed = seed - 2**64 if seed >= 2**63 else seed
        perturb_(
            [weight.zero_()],
            [parameter_key(name)],
            torch.tensor([signed]),
            torch.tensor([deviation], dtype=torch.float32),
        )


def load_adapters(adapted: nn.Module, folder: Path) -> None:
    """Load a folder's adapters into a model that has some of the same form.

    Raises:
        InputError: the file cannot be read, or has other tensors.
    """
    import peft

    path = folder / ADAPTER_WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{path}: holds no weights that can be read ({one_line(error)}); restore it"
        ) from None
    wanted: dict[str, Tensor] = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for name in sorted(tensors.keys() | wanted.keys()):
        here, there = (
            None if name not in state else tuple(state[name].shape) for state in (tensors, wanted)
        )
        if here != there:
            raise InputError(
                f"{path}: {name!r} has the shape {here}, but the adapters of this model {there};"
                " give the folder that the run has saved"
            )
    peft.set_peft_model_state_dict(adapted, tensors)


def save_adapters(adapted: Any, folder: Path) -> None:
    """Write the adapters to a folder: adapter_config.json and adapter_model.safetensors."""
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form of PEFT's that nobody has filled in

"""The section [model] of a run's configuration, and its table [model.lora].

This module does not import torch, so that a mistake is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedspzo.checks import LIMIT_16, LIMIT_64, check_text, check_whole

from .installed import check_installed

ADAPTER_CONFIG = "adapter_config.json"
"""The file by which a folder holds adapters in place of a whole model."""
ALL_LINEAR: Literal["all-linear"] = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The table [model.lora]: adapters of low rank (arXiv 2106.09685).

    The weight of each adapted layer becomes W + alpha / r * B A, where A has r rows and B has r
    columns. B is 0 at first.

    Attributes:
        r: the rank. Default 8.
        alpha: alpha / r scales the product. Default 16.
        target_modules: names of the layers that are adapted, or endings of their names. Default
            "all-linear": every linear layer but a language model's output layer.
        seed: A follows from it, so that all participants have the same. Default 0.

    Raises:
        ValueError: a value is out of range.
    """

    r: int = 8
    alpha: int = 16
    target_modules: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("r", self.r, 1, LIMIT_16)
        check_whole("alpha", self.alpha, 1, LIMIT_16)
        check_whole("seed", self.seed, 0, LIMIT_64 - 1)
        names = self.target_modules
        if names != ALL_LINEAR and (not isinstance(names, tuple) or not names):
            raise ValueError(
                f"target_modules is {names!r}; give {ALL_LINEAR!r}, or a list of layers' names"
            )
        for name in names:
            check_text("target_modules", name)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The section [model].

    Attributes:
        name: a hub id, a local folder, or "demo" for the packaged model.
        dtype: dtype of the weights. Default "float32".
        device: device to train on. Default "auto": "cuda" if torch finds one, else "cpu".
        adapter: "lora": adapters are trained, and the model's own weights stay. Default None.
        lora: the adapters' settings. Default None: with `adapter`, those of `LoraConfig()`.

    Raises:
        ValueError: `lora` is given without `adapter`, or peft is not installed (InputError).
    """

    name: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    adapter: Literal["lora"] | None = None
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.adapter is None:
            if self.lora is not None:
                raise ValueError(
                    "lora is given without adapter; add adapter = 'lora', or remove [model.lora]"
                )
            return
        check_installed("adapter = 'lora'", "peft", "peft")
        if self.lora is None:
            object.__setattr__(self, "lora", LoraConfig())

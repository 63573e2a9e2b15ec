"""A small language model, SPZO with each estimator, and comparisons of weights for their tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from fedspzo.blocks.cut import split
from fedspzo.estimators import find
from fedspzo.estimators.two_blocks import TwoBlocks
from fedspzo.optim.spzo import SPZO
from fedspzo_kernels import parameter_key, perturb_

VOCAB = 32
IDS = torch.arange(24).reshape(2, 12) % VOCAB
THREE = (-1, "head")
"""A cut into three blocks."""

SETTINGS = [
    {"estimator": "anchored", "sides": "one"},
    {"estimator": "anchored", "sides": "two", "perturbations": (1, 3, 2)},
    {"estimator": "anchored", "perturbations": (0, 2, 3)},
    {"estimator": "balanced", "sides": "one"},
    {"estimator": "balanced", "sides": "two"},
    {"estimator": "balanced", "perturbations": (2, 3)},
    {"estimator": "coupled"},
    {"estimator": "mezo", "perturbations": 3},
    {"estimator": "mezo", "sides": "one", "perturbations": 3},
]
every_estimator = pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values()))
)


def llama(dtype: torch.dtype = torch.float32, layers: int = 4) -> nn.Module:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        attention_dropout=0.5,
    )
    return hf.LlamaForCausalLM(config).to(dtype)


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: model(input_ids=IDS, labels=IDS).loss


def built(model: nn.Module, lr: float | tuple[float, ...], **settings: object) -> SPZO:
    """Build SPZO on three blocks, or on two for an estimator that takes two."""
    two = issubclass(find(settings.get("estimator", "anchored")), TwoBlocks)
    return SPZO(split(model, -1 if two else THREE), lr, **settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Say whether the weights are those of `before` to the bit."""
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def close(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Say whether the weights are those of `before` to the rounding of a step's moves in place.

    Moving there and back rounds by some ulps of the weight plus eps z.
    """
    return all(
        torch.allclose(p, before[n], rtol=1e-6, atol=1e-8) for n, p in model.named_parameters()
    )


def replayed(optimizer: SPZO, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the last step's reported terms to a copy of `before` as a server does: one op a block."""
    report, after = optimizer.last_step, {name: value.clone() for name, value in before.items()}
    for group, seeds, coefficients in zip(
        optimizer.param_groups, report.seeds, report.coefficients, strict=True
    ):
        names = group["param_names"]
        perturb_(
            [after[name] for name in names],
            [parameter_key(name) for name in names],
            seeds,
            coefficients,
            rounding="nearest" if report.rounding_seed is None else "stochastic",
            rounding_seed=report.rounding_seed,
        )
    return after

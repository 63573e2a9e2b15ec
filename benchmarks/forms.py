"""One zeroth-order step's passes over the weights, in the published forms and in ours.

Written after the papers' descriptions, each with the passes and kernels a step takes there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from fedspzo_kernels import perturb, perturb_

EPS, LR, GRADIENT, SEED = 1e-3, 1e-6, 0.5, 7


def mezo(tensors: list[Tensor]) -> None:
    """MeZO (arXiv 2305.17333): four passes; a normal, two products and a sum for each tensor."""
    for scale in (1, -2, 1):
        torch.manual_seed(SEED)
        for j, theta in enumerate(tensors):
            z = torch.normal(0, 1, theta.shape, dtype=theta.dtype, device=theta.device)
            tensors[j] = theta + scale * z * EPS
    torch.manual_seed(SEED)
    for j, theta in enumerate(tensors):
        z = torch.normal(0, 1, theta.shape, dtype=theta.dtype, device=theta.device)
        tensors[j] = theta - LR * (GRADIENT * z)


def decomfl(tensors: list[Tensor]) -> None:
    """DeComFL (arXiv 2405.15861): four passes; a normal and a scaled in-place sum for each."""
    for scale in (EPS, -2 * EPS, EPS, -LR * GRADIENT):
        torch.manual_seed(SEED)
        for theta in tensors:
            theta.add_(torch.randn_like(theta), alpha=scale)


def fused(tensors: list[Tensor], stream: str = "normal-v1") -> None:
    """Ours: three passes of one fused kernel; the last one restores and updates together."""
    keys = list(range(len(tensors)))
    for scale in (EPS, -2 * EPS, EPS - LR * GRADIENT):
        perturb_(tensors, keys, [SEED], [scale], stream=stream)


@cache
def scratch(elements: int, dtype: torch.dtype) -> Tensor:
    """The buffer that all steps use."""
    return torch.empty(elements, dtype=dtype)


def out_of_place(tensors: list[Tensor], stream: str = "normal-v1") -> None:
    """Ours, layerwise: each tensor is perturbed twice into one buffer, then updated in place."""
    buffer = scratch(max(theta.numel() for theta in tensors), tensors[0].dtype)
    for key, theta in enumerate(tensors):
        out = buffer[: theta.numel()].view_as(theta)
        for scale in (EPS, -EPS):
            perturb([theta], [key], [SEED], [scale], out=[out], stream=stream)
    perturb_(tensors, list(range(len(tensors))), [SEED], [-LR * GRADIENT], stream=stream)


FORMS: dict[str, Callable[[list[Tensor]], None]] = {
    "MeZO": mezo,
    "DeComFL": decomfl,
    "fused": fused,
    "fused, out of place": out_of_place,
    "signs": partial(fused, stream="rademacher-v1"),
    "signs, out of place": partial(out_of_place, stream="rademacher-v1"),
}


def flat_16m() -> list[torch.Size]:
    """One tensor of 2**24 elements."""
    return [torch.Size([1 << 24])]


def opt_125m() -> list[torch.Size]:
    """The parameters of OPT-125M, the tied head once."""
    from transformers import OPTConfig, OPTForCausalLM

    with torch.device("meta"):
        return [p.shape for p in OPTForCausalLM(OPTConfig()).parameters()]


SHAPES = {"flat 16M": flat_16m, "OPT-125M": opt_125m}

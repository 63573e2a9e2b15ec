"""Compares the device's bits with the CPU's, in all three forms of the op."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fedspzo_kernels
from fedspzo_kernels import perturb, perturb_, perturb_rows

from . import device
from .rows import attempt, record

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZE = device.sized(100_003, 203)
TERMS = device.sized((1, 3, 70), (2,))


class Settings(NamedTuple):
    """What the three ops take beside tensors: the terms, an offset, and the rest."""

    terms: tuple[list[int], list[float]]
    offset: int
    same: dict[str, Any]


WIDTH = 57
"""Of the rows that are looked up: some begin at odd addresses."""


def forms(whole: Tensor, beside: Tensor, settings: Settings) -> list[Tensor]:
    """Results of the three ops: by rows, out of place, in place."""
    terms, offset, same = settings
    height = len(whole) // WIDTH
    ids = torch.tensor(device.sized([height - 1, 0, 1, 1], [1]), device=whole.device)
    table = whole[: height * WIDTH].view(height, WIDTH)
    rows = perturb_rows(table, ids, 5, *terms, offset=offset, **same)
    tensors = [whole, beside[1:-5]]  # the second is not aligned
    place = [5, -6], *terms
    outs = perturb(tensors, *place, offsets=[offset, 1], **same)
    perturb_(tensors, *place, offsets=[offset, 1], **same)
    return [rows, *outs, whole, beside]


def differing(dtype: torch.dtype, stream: str, rounding: str, terms: int) -> int:
    """Count the elements in which the device and the CPU differ."""
    seeds = [2**40 + k for k in range(terms)]
    coeffs = [0.1 - 0.003 * k for k in range(terms)]
    settings = Settings(
        (seeds, coeffs),
        2**34 - 777,
        {
            "rounding": rounding,
            "rounding_seed": 7 if rounding == "stochastic" else None,
            "stream": stream,
        },
    )
    on_cpu = [torch.linspace(-2, 2, SIZE).to(dtype) for _ in range(2)]
    on_device = [tensor.to(device.DEVICE, copy=True) for tensor in on_cpu]
    word = torch.int32 if dtype == torch.float32 else torch.int16
    return sum(
        int((a.cpu().view(word) != b.view(word)).sum())
        for a, b in zip(forms(*on_device, settings), forms(*on_cpu, settings), strict=True)
    )


def check() -> None:
    """Record the differences of every dtype, stream and rounding in a row each, then of all."""
    counts = []
    for name, stream, rounding in itertools.product(
        DTYPES, fedspzo_kernels.STREAMS, ("nearest", "stochastic")
    ):
        what = f"bits, {name}, {stream}, {rounding}"
        counts.append(1)  # as long as the comparison has not come to its end
        with attempt(what):
            counts[-1] = sum(differing(DTYPES[name], stream, rounding, terms) for terms in TERMS)
            record(what, differing=counts[-1])
    record(
        "bits, all",
        differing=sum(counts),
        comparisons=len(counts),
        cpu_backend=fedspzo_kernels.serving("cpu"),
    )

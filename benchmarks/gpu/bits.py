"""Compares the device's bits with the CPU's."""

from __future__ import annotations

import itertools

import torch

import fedspzo_kernels
from fedspzo_kernels import perturb_

from . import device
from .rows import attempt, record

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZE = device.sized(100_003, 203)
TERMS = device.sized((1, 3, 70), (1, 2))


def differing(dtype: torch.dtype, stream: str, rounding: str, terms: int) -> int:
    """Count the elements in which the device and the CPU differ."""
    on_cpu = [torch.linspace(-2, 2, SIZE).to(dtype) for _ in range(2)]
    on_device = [tensor.to(device.DEVICE, copy=True) for tensor in on_cpu]
    for whole, beside in (on_cpu, on_device):
        perturb_(
            [whole, beside[1:-5]],  # the second is not aligned
            [5, -6],
            [2**40 + k for k in range(terms)],
            [0.1 - 0.003 * k for k in range(terms)],
            rounding=rounding,  # type: ignore[arg-type]
            rounding_seed=7 if rounding == "stochastic" else None,
            offsets=[2**34 - 777, 1],
            stream=stream,
        )
    word = torch.int32 if dtype == torch.float32 else torch.int16
    return sum(
        int((a.cpu().view(word) != b.view(word)).sum())
        for a, b in zip(on_device, on_cpu, strict=True)
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

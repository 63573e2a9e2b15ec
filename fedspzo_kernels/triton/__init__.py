"""The Triton backend: serves GPUs where the CUDA backend is not there, and on request.

May import the noise's table and streams from the package around it.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
from torch import Tensor

from .. import noise_table
from ..streams import NORMAL
from .kernel import perturb_kernel, rows_kernel

# Fixed, never tuned: the trial launches of an autotuner would change the weights.
GROUPS = 1024  # of four elements: 32 elements a thread share what a program computes once
ROW_GROUPS = 256  # rows are short
WARPS = 4
VECTOR = 8  # elements: 16 bytes of bfloat16


@cache
def signed_table(device: torch.device) -> Tensor:
    """The table of `normal-v1` by bits(f) >> shift, for both signs of f: int64 (rows, 2).

    Rows that no f reaches are zero. Negating f, c0 and c2 negates each step of the evaluation, so
    the bits are those of the table without a sign.
    """
    bits = noise_table.SEGMENT_BITS
    rows = torch.tensor(noise_table.ROWS).to(torch.int32).view(torch.float32)
    places = (torch.arange(len(rows)) + (127 << bits)) % len(rows)
    positive = rows[places]
    table = torch.zeros((383 << bits) + len(rows), 4)
    table[127 << bits :][: len(rows)] = positive
    table[383 << bits :] = positive * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    return table.view(torch.int64).to(device)


def _arguments(
    seeds: Tensor, coeffs: Tensor, rounding_seed: Tensor | None
) -> tuple[Tensor | int, ...]:
    """What the kernels take of the terms: the last arguments that are no constants."""
    random = seeds if rounding_seed is None else rounding_seed
    return seeds, coeffs, seeds.numel(), random, signed_table(seeds.device)


def _options(
    dtype: torch.dtype, seeds: Tensor, rounding_seed: Tensor | None, stream: int
) -> dict[str, bool | int]:
    """Constants and compile options that both kernels share."""
    return {
        "NORMAL": stream == NORMAL,
        "ONE_TERM": seeds.numel() == 1,
        "STOCHASTIC": rounding_seed is not None and dtype != torch.float32,
        "num_warps": WARPS,
        "enable_fp_fusion": False,
    }


def perturb_out(
    sources: list[Tensor],
    outs: list[Tensor],
    keys: list[int],
    offsets: list[int],
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> None:
    """The op `fedspzo::perturb_out` on a GPU; one launch a tensor."""
    block = 4 * GROUPS
    with torch.cuda.device_of(seeds):
        for source, out, key, offset in zip(sources, outs, keys, offsets, strict=True):
            if not source.numel():
                continue
            shift = offset % block
            # Three compilations, not one a shift: none, one of whole vectors, and any.
            unit = 0 if shift == 0 else VECTOR if shift % VECTOR == 0 else 1
            perturb_kernel[(triton.cdiv(source.numel() + shift, block),)](
                source,
                out,
                source.numel(),
                offset - shift,
                shift // max(unit, 1),
                key,
                *_arguments(seeds, coeffs, rounding_seed),
                UNIT=unit,
                GROUPS=GROUPS,
                **_options(source.dtype, seeds, rounding_seed, stream),
            )


def perturb_(
    tensors: list[Tensor],
    keys: list[int],
    offsets: list[int],
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> None:
    """The op `fedspzo::perturb_` on a GPU; one launch a tensor."""
    if seeds.numel():
        perturb_out(tensors, tensors, keys, offsets, seeds, coeffs, rounding_seed, stream)


def perturb_rows(
    source: Tensor,
    rows: Tensor,
    out: Tensor,
    key: int,
    offset: int,
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> None:
    """The op `fedspzo::perturb_rows` on a GPU; one launch."""
    count, width = source.shape
    if not out.numel():
        return
    # Rows begin at multiples of `step`, so the last one of a block leaves at least that much of it.
    block = 4 * ROW_GROUPS
    step = math.gcd(offset, width, block)
    blocks = triton.cdiv(width + block - step, block)
    with torch.cuda.device_of(seeds):
        rows_kernel[(len(rows), blocks)](
            source,
            rows,
            out,
            count,
            width,
            offset,
            key,
            *_arguments(seeds, coeffs, rounding_seed),
            GROUPS=ROW_GROUPS,
            **_options(source.dtype, seeds, rounding_seed, stream),
        )


def register(device: str) -> None:
    """Have these serve a device's tensors: "CUDA", or "CPU" where Triton interprets."""
    for op in (perturb_, perturb_out, perturb_rows):
        torch.library.impl(f"fedspzo::{op.__name__}", device, op)

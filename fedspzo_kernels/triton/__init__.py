"""The Triton backend: it serves GPUs if the CUDA backend is not available, or on request.

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

# These are fixed, as the trial launches of an autotuner would change the weights.
GROUPS = 1024  # groups of four elements in a program: 32 elements a thread share its constants
ROW_GROUPS = 256  # fewer, as rows are short
WARPS = 4
VECTOR = 8  # elements of a vector: 16 bytes of bfloat16


@cache
def signed_table(device: torch.device) -> Tensor:
    """Return the table of `normal-v1` for both signs of f, by the row bits(f) >> shift.

    Rows that no f reaches are zero. Negating f, c0 and c2 negates each step of the evaluation. So
    the bits are those of the table without signs.

    Returns:
        int64 (rows, 2), the bits of the four float32 coefficients of each row.
    """
    bits = noise_table.SEGMENT_BITS
    rows = torch.tensor(noise_table.ROWS).to(torch.int32).view(torch.float32)
    places = (torch.arange(len(rows)) + (127 << bits)) % len(rows)
    positive = rows[places]
    table = torch.zeros((383 << bits) + len(rows), 4, dtype=torch.float32)
    table[127 << bits :][: len(rows)] = positive
    table[383 << bits :] = positive * torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float32)
    return table.view(torch.int64).to(device)


def _arguments(
    seeds: Tensor, coeffs: Tensor, rounding_seed: Tensor | None
) -> tuple[Tensor | int, ...]:
    """Return the kernels' arguments for the terms, which are the last before the constants."""
    random = seeds if rounding_seed is None else rounding_seed
    return seeds, coeffs, seeds.numel(), random, signed_table(seeds.device)


def _options(
    dtype: torch.dtype, seeds: Tensor, rounding_seed: Tensor | None, stream: int
) -> dict[str, bool | int]:
    """Return the constants and compile options that both kernels share."""
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
    """Implement the op `fedspzo::perturb_out` on a GPU, with a launch for each tensor."""
    block = 4 * GROUPS
    with torch.cuda.device_of(seeds):
        for source, out, key, offset in zip(sources, outs, keys, offsets, strict=True):
            if not source.numel():
                continue
            shift = offset % block
            # three kinds of shifts need three compilations: none, whole vectors, and any other
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
    """Implement the op `fedspzo::perturb_` on a GPU, with a launch for each tensor."""
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
    """Implement the op `fedspzo::perturb_rows` on a GPU, with a single launch."""
    count, width = source.shape
    if not out.numel():
        return
    # rows begin at multiples of `step`, so one begins at most block - step into its first block
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
    """Register the ops for a device: "CUDA", or "CPU" if Triton interprets."""
    for op in (perturb_, perturb_out, perturb_rows):
        torch.library.impl(f"fedspzo::{op.__name__}", device, op)

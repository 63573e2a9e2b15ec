"""The Triton backend: serves GPUs where the CUDA backend is not there, and on request.

May import the noise's table and streams from the package around it.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from .. import noise_table
from ..streams import NORMAL
from .kernel import perturb_kernel

# Fixed, never tuned: the trial launches of an autotuner would change the weights.
GROUPS = 1024  # of four elements: 32 elements a thread share what a program computes once
WARPS = 4


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
    if not seeds.numel():
        return
    block = 4 * GROUPS
    for tensor, key, offset in zip(tensors, keys, offsets, strict=True):
        if not tensor.numel():
            continue
        shift = offset % block
        grid = (triton.cdiv(tensor.numel() + shift, block),)
        perturb_kernel[grid](
            tensor,
            tensor.numel(),
            offset - shift,
            key,
            seeds,
            coeffs,
            seeds.numel(),
            seeds if rounding_seed is None else rounding_seed,
            signed_table(tensor.device),
            NORMAL=stream == NORMAL,
            ONE_TERM=seeds.numel() == 1,
            STOCHASTIC=rounding_seed is not None and tensor.dtype != torch.float32,
            SHIFT=shift,
            GROUPS=GROUPS,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )

"""Schemas and fakes of the ops. Compiled backends register their kernels under the same names.

The reference serves every device that no backend has claimed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference

torch.library.define(
    "fedspzo::perturb_",
    "(Tensor(a!)[] tensors, int[] keys, int[] offsets, Tensor seeds, Tensor coeffs,"
    " Tensor? rounding_seed, int stream) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("fedspzo::perturb_", "CompositeExplicitAutograd", reference.perturb_)


@torch.library.register_fake("fedspzo::perturb_")
def _(
    tensors: list[Tensor],
    keys: list[int],
    offsets: list[int],
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> None:
    torch._check(len(keys) == len(tensors), lambda: "keys: one for each tensor")
    torch._check(len(offsets) == len(tensors), lambda: "offsets: one for each tensor")
    torch._check(seeds.shape == coeffs.shape, lambda: "seeds and coeffs: the same shape")

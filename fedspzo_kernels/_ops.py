"""Defines the three ops, with their schemas, default implementations and fakes.

Compiled backends register their kernels under these names. `perturb_` changes tensors in place,
`perturb_out` writes the perturbed values to other tensors, and `perturb_rows` writes some perturbed
rows of one tensor, as an embedding's lookup needs. All three take contiguous tensors on one device.
`functional.py` and `perturber.py` have their public forms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference

_SCALARS = "Tensor seeds, Tensor coeffs, Tensor? rounding_seed, int stream"
_SCHEMAS = {
    "perturb_": f"(Tensor(a!)[] tensors, int[] keys, int[] offsets, {_SCALARS}) -> ()",
    "perturb_out": (
        f"(Tensor[] sources, Tensor(a!)[] outs, int[] keys, int[] offsets, {_SCALARS}) -> ()"
    ),
    "perturb_rows": (
        f"(Tensor source, Tensor rows, Tensor(a!) out, int key, int offset, {_SCALARS}) -> ()"
    ),
}
for name, schema in _SCHEMAS.items():
    torch.library.define(f"fedspzo::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))


def _copy_and_perturb(
    sources: list[Tensor],
    outs: list[Tensor],
    keys: list[int],
    offsets: list[int],
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> None:
    for source, out in zip(sources, outs, strict=True):
        out.copy_(source)
    torch.ops.fedspzo.perturb_(outs, keys, offsets, seeds, coeffs, rounding_seed, stream)


# These serve each device whose backend has no kernel of its own. A backend has to have `perturb_`.
# If it also has `perturb_out`, that saves a read and a write.
torch.library.impl("fedspzo::perturb_", "CompositeExplicitAutograd", reference.perturb_)
torch.library.impl("fedspzo::perturb_out", "CompositeExplicitAutograd", _copy_and_perturb)
torch.library.impl("fedspzo::perturb_rows", "CompositeExplicitAutograd", reference.perturb_rows)


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


@torch.library.register_fake("fedspzo::perturb_out")
def _(
    sources: list[Tensor],
    outs: list[Tensor],
    keys: list[int],
    offsets: list[int],
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> None:
    torch._check(len(outs) == len(sources), lambda: "outs: one for each source")
    for source, out in zip(sources, outs, strict=True):
        torch._check(out.shape == source.shape, lambda: "outs: the shapes of the sources")
        torch._check(out.dtype == source.dtype, lambda: "outs: the dtypes of the sources")
    torch._check(len(keys) == len(sources), lambda: "keys: one for each source")
    torch._check(len(offsets) == len(sources), lambda: "offsets: one for each source")
    torch._check(seeds.shape == coeffs.shape, lambda: "seeds and coeffs: the same shape")


@torch.library.register_fake("fedspzo::perturb_rows")
def _(
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
    torch._check(source.dim() == 2, lambda: "source: of two dimensions")
    torch._check(rows.dim() == 1, lambda: "rows: of one dimension")
    torch._check(
        out.dim() == 2 and out.shape[0] == rows.shape[0] and out.shape[1] == source.shape[1],
        lambda: "out: a row of source for each of rows",
    )
    torch._check(out.dtype == source.dtype, lambda: "out: the dtype of source")
    torch._check(seeds.shape == coeffs.shape, lambda: "seeds and coeffs: the same shape")

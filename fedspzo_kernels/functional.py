"""The public forms of the ops, for one call each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (defines the ops)
from .arguments import Rounding, Terms, check_offset, check_out, check_tensor, signed, stream_code
from .perturber import Perturber


def perturb_(
    tensors: Sequence[Tensor],
    keys: Sequence[int],
    seeds: Tensor | Sequence[int],
    coeffs: Tensor | Sequence[float],
    *,
    rounding: Rounding = "nearest",
    rounding_seed: Tensor | int | None = None,
    offsets: Sequence[int] | None = None,
    stream: str = "normal-v1",
) -> None:
    """Add seeded noise to tensors in place: `theta <- round(theta + sum_k coeffs[k] * z_k)`.

    z_k is the noise of (seeds[k], the tensor's key, the element's index): the same bits on every
    backend, thread count and shard. The terms are added in order, each by one float32 fused
    multiply-add, and the sum is rounded once to the tensor's dtype: one read and one write of
    each tensor however many terms there are.

    Every call checks every tensor. For many calls on the same tensors, make a `Perturber` once.

    Args:
        tensors: float32, bfloat16 or float16, of any shape; not overlapping one another.
        keys: one 64-bit key a tensor, usually `parameter_key(name)`.
        seeds: K seeds: ints in [-2**63, 2**64), or an int64 tensor of their 64 bits.
        coeffs: K finite floats, or a float32 tensor. Coefficients on a GPU are not checked for
            finiteness: that would wait for the device.
        rounding: "nearest" (even), or "stochastic": up or down with probabilities that keep the
            mean (no effect on float32).
        rounding_seed: the seed of stochastic rounding's random bits: an int, or an int64 tensor
            of one element.
        offsets: the index of each tensor's first element in the whole parameter, so that a shard
            gets its slice of the noise. Default 0.
        stream: "normal-v1" or "rademacher-v1".

    Raises:
        TypeError, ValueError: naming the argument, the value and the remedy, before any tensor
            is changed.
    """
    perturber = Perturber(tensors, keys, offsets=offsets, stream=stream)
    perturber.add_(seeds, coeffs, rounding=rounding, rounding_seed=rounding_seed)


def perturb(
    tensors: Sequence[Tensor],
    keys: Sequence[int],
    seeds: Tensor | Sequence[int],
    coeffs: Tensor | Sequence[float],
    *,
    out: Sequence[Tensor] | None = None,
    rounding: Rounding = "nearest",
    rounding_seed: Tensor | int | None = None,
    offsets: Sequence[int] | None = None,
    stream: str = "normal-v1",
) -> list[Tensor]:
    """Write tensors plus seeded noise to others: the bits of `perturb_` on a copy of them.

    One read of each tensor and one write of each result, where a copy that is then perturbed in
    place takes two of each.

    Args:
        tensors, keys, seeds, coeffs, rounding, rounding_seed, offsets, stream: as in `perturb_`;
            the tensors are only read.
        out: where to write, one a tensor, of its shape, dtype and device: not overlapping one
            another or the tensors. Default: new contiguous tensors.

    Returns:
        `out`, or the new tensors.

    Raises:
        TypeError, ValueError: as `perturb_`.
    """
    perturber = Perturber(tensors, keys, offsets=offsets, stream=stream)
    return perturber.add(seeds, coeffs, out=out, rounding=rounding, rounding_seed=rounding_seed)


@torch.no_grad()
def perturb_rows(
    source: Tensor,
    rows: Tensor,
    key: int,
    seeds: Tensor | Sequence[int],
    coeffs: Tensor | Sequence[float],
    *,
    out: Tensor | None = None,
    rounding: Rounding = "nearest",
    rounding_seed: Tensor | int | None = None,
    offset: int = 0,
    stream: str = "normal-v1",
) -> Tensor:
    """Look up rows of a parameter plus seeded noise: an embedding's lookup at perturbed weights.

    The bits are those of `perturb([source], ...)[0][rows]`, and only these rows are computed:
    `out[r, c] = round(source[rows[r], c] + sum_k coeffs[k] * z_k(offset + rows[r] * width + c))`.
    Nothing waits for a GPU.

    Args:
        source: (count, width) of float32, bfloat16 or float16; it is only read. One that is not
            contiguous is copied as a whole first.
        rows: int64 (R,), on the source's device, each in [0, count), in any order; a row may come
            more than once. On a GPU this is not checked, as that would wait for the device: a row
            that the source has not becomes NaN.
        key, seeds, coeffs, rounding, rounding_seed, offset, stream: as in `perturb_`, for one
            tensor.
        out: (R, width), of the source's dtype and device, not overlapping the source. Default: a
            new tensor.

    Returns:
        `out`, or the new tensor.

    Raises:
        TypeError, ValueError: naming the argument, the value and the remedy.
        IndexError: naming the first row that the source has not, where `rows` is on the CPU.
    """
    check_tensor(source, "source")
    if source.dim() != 2:
        raise ValueError(f"source has shape {tuple(source.shape)}; pass one of (count, width)")
    count, width = source.shape
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows is a {type(rows).__name__}; pass an int64 tensor of shape (R,)")
    if rows.dtype != torch.int64 or rows.dim() != 1 or rows.device != source.device:
        raise TypeError(
            f"rows is a {rows.dtype} tensor of shape {tuple(rows.shape)} on {rows.device}; pass an"
            f" int64 tensor of shape (R,) on {source.device}"
        )
    if rows.device.type == "cpu" and len(rows):
        low, high = rows.aminmax()
        if low < 0 or high >= count:
            wrong = int(low if low < 0 else high)
            raise IndexError(f"rows has {wrong}; pass indices in [0, {count}), the source's rows")
    check_offset(offset, source, "offset")
    key, code = signed(key, "key"), stream_code(stream)
    terms = Terms.of(seeds, coeffs, rounding, rounding_seed).to(source.device)
    if out is None:
        out = torch.empty(len(rows), width, dtype=source.dtype, device=source.device)
    check_out(out, source, torch.Size((len(rows), width)), "out")
    target = out.detach()
    dense = target.contiguous()
    torch.ops.fedspzo.perturb_rows(
        source.detach().contiguous(), rows.contiguous(), dense, key, offset, *terms, code
    )
    if dense is not target:
        target.copy_(dense)
    torch.autograd.graph.increment_version(out)
    return out


def noise(
    numel: int,
    key: int,
    seed: int,
    *,
    offset: int = 0,
    stream: str = "normal-v1",
    device: torch.device | str | None = None,
) -> Tensor:
    """The noise itself: z of elements offset to offset + numel - 1, a float32 tensor (numel,)."""
    z = torch.zeros(numel, device=device)
    perturb_([z], [key], [seed], [1.0], offsets=[offset], stream=stream)
    return z

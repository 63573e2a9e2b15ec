"""The public forms of the ops. Each checks its arguments in every call."""

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

    z_k is a function of seeds[k], the tensor's key and the element's index. It has the same bits on
    all backends, and with any number of threads or shards. The terms are added in order, each by
    one float32 fused multiply-add. The sum is rounded once to the tensor's dtype. So each tensor is
    read once and written once, however many terms there are.

    Each call checks each tensor. For many calls on the same tensors, create a `Perturber` once.

    Args:
        tensors: float32, bfloat16 or float16 tensors of any shape. They must not overlap.
        keys: a 64-bit key for each tensor, usually `parameter_key(name)`.
        seeds: K seeds: ints in [-2**63, 2**64), or an int64 tensor with their 64 bits.
        coeffs: K finite floats, or a float32 tensor. Coefficients on a GPU are not checked, as
            that would wait for the device.
        rounding: "nearest" (ties to even), or "stochastic": up or down with probabilities that
            keep the mean. It has no effect on float32. Default "nearest".
        rounding_seed: the seed of stochastic rounding: an int, or an int64 tensor of one element.
            Default None, for "nearest".
        offsets: for each tensor the index of its first element in the whole parameter, so that a
            shard gets its slice of the noise. Default None: 0 for all.
        stream: "normal-v1" or "rademacher-v1" (docs/noise.md). Default "normal-v1".

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it, the value and the
            remedy. No tensor has changed then.
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
    """Write tensors plus seeded noise to other tensors, with the bits of `perturb_` on a copy.

    Each tensor is read once and each result written once. A copy that is perturbed in place takes
    two reads and two writes. All arguments but `out` are as in `perturb_`. The tensors are not
    changed.

    Args:
        out: for each tensor one of its shape, dtype and device to write to. They must not overlap
            one another or the tensors. Default None: new contiguous tensors.

    Returns:
        `out`, or the new tensors.

    Raises:
        TypeError, ValueError: as in `perturb_`.
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
    """Look up rows of a parameter plus seeded noise, as an embedding does at perturbed weights.

    The bits are those of `perturb([source], ...)[0][rows]`, but only these rows are computed:
    `out[r, c] = round(source[rows[r], c] + sum_k coeffs[k] * z_k(offset + rows[r] * width + c))`.
    The host does not wait for a GPU. The arguments that are not listed here are as in `perturb_`,
    for one tensor.

    Args:
        source: (count, width), float32, bfloat16 or float16. It is not changed. If it is not
            contiguous, it is copied as a whole first.
        rows: int64 (R,), on the source's device, each in [0, count), in any order, also
            repeatedly. On a GPU this is not checked, as that would wait for the device. A row that
            the source lacks becomes NaN there.
        out: (R, width), of the source's dtype and device. It must not overlap the source. Default
            None: a new tensor.

    Returns:
        `out`, or the new tensor.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it, the value and the
            remedy.
        IndexError: `rows` is on the CPU and names a row that the source lacks.
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
    """Return the noise z of the elements offset to offset + numel - 1.

    Args:
        numel: number of elements.
        key: the parameter's 64-bit key.
        seed: the 64-bit seed.
        offset: index of the first element. Default 0.
        stream: "normal-v1" or "rademacher-v1". Default "normal-v1".
        device: device of the result. Default None: torch's default device.

    Returns:
        A float32 tensor (numel,).
    """
    z = torch.zeros(numel, dtype=torch.float32, device=device)
    perturb_([z], [key], [seed], [1.0], offsets=[offset], stream=stream)
    return z

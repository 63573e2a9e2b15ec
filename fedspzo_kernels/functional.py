"""The public form of the op: arguments checked by name, then one call for each device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from . import _ops  # noqa: F401  (defines the op)
from .streams import STREAMS

Rounding = Literal["nearest", "stochastic"]
Scalars = Tensor | Sequence[int] | Sequence[float]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_INDEX = 2**63 - 1


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
    tensors, keys = list(tensors), [_signed(key, f"keys[{j}]") for j, key in enumerate(keys)]
    offsets = [0] * len(tensors) if offsets is None else list(offsets)
    _check_tensors(tensors)
    for name, values in (("keys", keys), ("offsets", offsets)):
        if len(values) != len(tensors):
            raise ValueError(f"{name}: {len(values)} for {len(tensors)} tensors; pass one a tensor")
    for j, (tensor, offset) in enumerate(zip(tensors, offsets, strict=True)):
        if not isinstance(offset, int) or not 0 <= offset <= MAX_INDEX - tensor.numel():
            raise ValueError(
                f"offsets[{j}] is {offset!r}; pass the index of the tensor's first element in the"
                " whole parameter, an int >= 0 with the last index below 2**63"
            )
    seeds, coeffs = _seed_tensor(seeds), _coefficient_tensor(coeffs)
    if seeds.numel() != coeffs.numel():
        raise ValueError(
            f"seeds and coeffs: {seeds.numel()} seeds for {coeffs.numel()} coefficients;"
            " pass one coefficient a seed"
        )
    random = _rounding_tensor(rounding, rounding_seed)
    if stream not in STREAMS:
        raise ValueError(f"stream is {stream!r}; pass one of {', '.join(STREAMS)}")

    by_device = defaultdict(list)
    for j, tensor in enumerate(tensors):
        by_device[tensor.device].append(j)
    with torch.no_grad():
        for device, members in by_device.items():
            targets = [tensors[j].detach() for j in members]
            dense = [target.contiguous() for target in targets]
            torch.ops.fedspzo.perturb_(
                dense,
                [keys[j] for j in members],
                [offsets[j] for j in members],
                # small and pageable: staged at once, and the host does not wait for the GPU
                seeds.to(device, non_blocking=True),
                coeffs.to(device, non_blocking=True),
                None if random is None else random.to(device, non_blocking=True),
                STREAMS[stream],
            )
            for target, result in zip(targets, dense, strict=True):
                if result is not target and result.data_ptr() != target.data_ptr():
                    target.copy_(result)
    torch.autograd.graph.increment_version(tensors)


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


def _check_tensors(tensors: list[Tensor]) -> None:
    for j, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors[{j}] is a {type(tensor).__name__}; pass a torch.Tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"tensors[{j}] has dtype {tensor.dtype}; perturb_ takes"
                " torch.float32, torch.bfloat16 and torch.float16"
            )
        if tensor.layout != torch.strided:
            raise TypeError(f"tensors[{j}] has layout {tensor.layout}; pass a dense tensor")
        if any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
            raise ValueError(
                f"tensors[{j}] of shape {tuple(tensor.shape)} is expanded (strides"
                f" {tensor.stride()}), so its elements share memory; pass its .contiguous() copy"
            )


def _signed(value: int, name: str) -> int:
    """The int64 with the same 64 bits."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} is {value!r}; pass an int of 64 bits, signed or unsigned")
    return value - 2**64 if value >= 2**63 else value


def _seed_tensor(seeds: Tensor | Sequence[int]) -> Tensor:
    if not isinstance(seeds, Tensor):
        return torch.tensor([_signed(s, f"seeds[{k}]") for k, s in enumerate(seeds)]).long()
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise TypeError(
            f"seeds is a {seeds.dtype} tensor of shape {tuple(seeds.shape)};"
            " pass an int64 tensor of shape (K,)"
        )
    return seeds


def _coefficient_tensor(coeffs: Tensor | Sequence[float]) -> Tensor:
    if not isinstance(coeffs, Tensor):
        coeffs = torch.tensor([float(c) for c in coeffs], dtype=torch.float32)
    if coeffs.dtype != torch.float32 or coeffs.dim() != 1:
        raise TypeError(
            f"coeffs is a {coeffs.dtype} tensor of shape {tuple(coeffs.shape)};"
            " pass a float32 tensor of shape (K,)"
        )
    if coeffs.device.type == "cpu":
        for k, c in enumerate(coeffs.tolist()):
            if not math.isfinite(c):
                raise ValueError(f"coeffs[{k}] is {c} in float32; pass finite coefficients")
    return coeffs


def _rounding_tensor(rounding: str, rounding_seed: Tensor | int | None) -> Tensor | None:
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding is {rounding!r}; pass 'nearest' or 'stochastic'")
    if rounding == "nearest":
        if rounding_seed is not None:
            raise ValueError("rounding_seed is given but rounding is 'nearest'; leave it out")
        return None
    if rounding_seed is None:
        raise ValueError("rounding_seed is missing; rounding='stochastic' needs a 64-bit seed")
    if not isinstance(rounding_seed, Tensor):
        return torch.tensor(_signed(rounding_seed, "rounding_seed"))
    if rounding_seed.dtype != torch.int64 or rounding_seed.numel() != 1:
        raise TypeError(
            f"rounding_seed is a {rounding_seed.dtype} tensor of shape"
            f" {tuple(rounding_seed.shape)}; pass an int64 tensor of one element"
        )
    return rounding_seed.reshape(())

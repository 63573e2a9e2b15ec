"""Checks the arguments of the ops. Each error names the argument, the value and the remedy."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .streams import STREAMS

Rounding = Literal["nearest", "stochastic"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_INDEX = 2**63 - 1


class Terms(NamedTuple):
    """The terms of one call, after their check.

    Attributes:
        seeds: int64 (K,).
        coeffs: float32 (K,).
        rounding_seed: int64 () for stochastic rounding. None: rounding to nearest.
    """

    seeds: Tensor
    coeffs: Tensor
    rounding_seed: Tensor | None

    @classmethod
    def of(
        cls,
        seeds: Tensor | Sequence[int],
        coeffs: Tensor | Sequence[float],
        rounding: Rounding,
        rounding_seed: Tensor | int | None,
    ) -> Terms:
        """Check the terms of a call. `perturb_` describes the arguments and errors."""
        seeds, coeffs = _seed_tensor(seeds), _coefficient_tensor(coeffs)
        if seeds.numel() != coeffs.numel():
            raise ValueError(
                f"seeds and coeffs: {seeds.numel()} seeds for {coeffs.numel()} coefficients;"
                " pass one coefficient a seed"
            )
        random = _rounding_tensor(rounding, rounding_seed)
        return cls(seeds.contiguous(), coeffs.contiguous(), random)

    def to(self, device: torch.device) -> Terms:
        """Copy the terms to a device. The host does not wait, as they are small and pageable."""
        if self.seeds.device == self.coeffs.device == device and self.rounding_seed is None:
            return self
        return Terms(
            self.seeds.to(device, non_blocking=True),
            self.coeffs.to(device, non_blocking=True),
            None
            if self.rounding_seed is None
            else self.rounding_seed.to(device, non_blocking=True),
        )


def check_tensor(tensor: Tensor, name: str) -> None:
    """Raise TypeError or ValueError unless the ops can take the tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; pass a torch.Tensor")
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}; perturb_ takes"
            " torch.float32, torch.bfloat16 and torch.float16"
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}; pass a dense tensor")
    if tensor.is_contiguous():
        return
    if any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} is expanded (strides"
            f" {tensor.stride()}), so its elements share memory; pass its .contiguous() copy"
        )


def check_out(out: Tensor, source: Tensor, shape: torch.Size, name: str) -> None:
    """Raise unless `out` has the given shape, and the source's dtype and device."""
    check_tensor(out, name)
    if out.shape != shape or out.dtype != source.dtype or out.device != source.device:
        raise ValueError(
            f"{name} has shape {tuple(out.shape)} and dtype {out.dtype} on {out.device}; pass shape"
            f" {tuple(shape)} and dtype {source.dtype} on {source.device}"
        )


def check_offset(offset: int, tensor: Tensor, name: str) -> None:
    """Raise ValueError unless all of the tensor's elements have an index from 0 to 2**63 - 1."""
    if not isinstance(offset, int) or not 0 <= offset <= MAX_INDEX - tensor.numel():
        raise ValueError(
            f"{name} is {offset!r}; pass the index of the tensor's first element in the"
            " whole parameter, an int >= 0 with the last index below 2**63"
        )


def stream_code(stream: str) -> int:
    """Return the code of a stream's name for the ops. Raise ValueError if there is none."""
    if stream not in STREAMS:
        raise ValueError(f"stream is {stream!r}; pass one of {', '.join(STREAMS)}")
    return STREAMS[stream]


def signed(value: int, name: str) -> int:
    """Return the int64 with the same 64 bits. Raise ValueError if `value` has more."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} is {value!r}; pass an int of 64 bits, signed or unsigned")
    return value - 2**64 if value >= 2**63 else value


def _seed_tensor(seeds: Tensor | Sequence[int]) -> Tensor:
    if not isinstance(seeds, Tensor):
        try:
            unsigned = array("Q", seeds)
        except (TypeError, OverflowError):  # some are negative, or no ints of 64 bits
            return torch.tensor([signed(s, f"seeds[{k}]") for k, s in enumerate(seeds)]).long()
        return torch.frombuffer(unsigned, dtype=torch.int64) if unsigned else torch.zeros(0).long()
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise TypeError(
            f"seeds is a {seeds.dtype} tensor of shape {tuple(seeds.shape)};"
            " pass an int64 tensor of shape (K,)"
        )
    return seeds


def _coefficient_tensor(coeffs: Tensor | Sequence[float]) -> Tensor:
    if not isinstance(coeffs, Tensor):
        rounded = array("f", coeffs)
        _check_finite(rounded)
        if not rounded:  # an empty buffer has no address
            return torch.zeros(0, dtype=torch.float32)
        return torch.frombuffer(rounded, dtype=torch.float32)
    if coeffs.dtype != torch.float32 or coeffs.dim() != 1:
        raise TypeError(
            f"coeffs is a {coeffs.dtype} tensor of shape {tuple(coeffs.shape)};"
            " pass a float32 tensor of shape (K,)"
        )
    if coeffs.device.type == "cpu":
        _check_finite(coeffs.tolist())
    return coeffs


def _check_finite(coeffs: Sequence[float]) -> None:
    for k, c in enumerate(coeffs):
        if not math.isfinite(c):
            raise ValueError(f"coeffs[{k}] is {c} in float32; pass finite coefficients")


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
        return torch.tensor(signed(rounding_seed, "rounding_seed"))
    if rounding_seed.dtype != torch.int64 or rounding_seed.numel() != 1:
        raise TypeError(
            f"rounding_seed is a {rounding_seed.dtype} tensor of shape"
            f" {tuple(rounding_seed.shape)}; pass an int64 tensor of one element"
        )
    return rounding_seed.reshape(())

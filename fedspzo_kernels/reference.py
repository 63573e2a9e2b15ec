"""The ops and the noise streams in plain torch. Tests compare all other backends with them.

They run on any device, and are written to be read, not to be fast. Words of 32 bits are held in
int64 tensors, because torch has little arithmetic on unsigned integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from . import noise_table
from .streams import NORMAL, RADEMACHER

LOW = 0xFFFFFFFF
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
ROUNDING_DOMAIN = 0x80000000
"""Bit of counter word 1 that is set for rounding bits. An element's index never reaches it."""

ELEMENTS_AT_ONCE = 1 << 20
"""Number of elements that are computed at a time, which bounds the memory."""


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Compute Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        counter: four int64 tensors of one shape, each holding 32-bit words.
        key: two int64 tensors that broadcast with them.

    Returns:
        Four int64 tensors of output words in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        p0 = c0 * PHILOX_MULTIPLIERS[0]  # wraps to the product's low 64 bits
        p1 = c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & LOW) ^ c1 ^ k0,
            p1 & LOW,
            ((p0 >> 32) & LOW) ^ c3 ^ k1,
            p0 & LOW,
        )
        k0 = (k0 + PHILOX_WEYL[0]) & LOW
        k1 = (k1 + PHILOX_WEYL[1]) & LOW
    return [c0, c1, c2, c3]


def words(indices: Tensor, key: int, seed: Tensor, elements: int, domain: int = 0) -> Tensor:
    """Return the Philox word of each element, where a counter serves `elements` elements.

    Args:
        indices: the elements' indices in the parameter, int64.
        key: the parameter's key, 64 bits.
        seed: int64 ().
        elements: number of elements that share a counter, a multiple of 4.
        domain: bits that are set in counter word 1. Default 0.
    """
    counter = indices // elements
    high = counter >> 32
    keys = [torch.full_like(counter, word) for word in (key & LOW, (key >> 32) & LOW)]
    four = philox4x32([counter & LOW, high | domain, *keys], [seed & LOW, (seed >> 32) & LOW])
    place = indices % elements // (elements // 4)
    return torch.stack(four).gather(0, place.unsqueeze(0)).squeeze(0)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return float32 a * b + c with a single rounding, as the hardware's fused multiply-add does.

    The product of two float32 is exact in float64. The float64 sum is rounded to odd, so that the
    last rounding to float32 gives the correctly rounded result (Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008). Knuth's two-sum
    gives the sum's error, which shows if it is inexact and to which side.
    """
    p, c = a.double() * b.double(), c.double()
    s = p + c
    bigger = s - p
    error = (p - (s - bigger)) + (c - bigger)
    bits = s.view(torch.int64)
    away = torch.where((error > 0) == (s > 0), 1, -1)
    inexact = s.isfinite() & (error != 0) & (bits & 1 == 0)
    return torch.where(inexact, bits + away, bits).view(torch.float64).float()


@cache
def table(device: torch.device) -> list[Tensor]:
    """Return the columns c0 to c3 of the table of `normal-v1`, float32 (rows,) each."""
    rows = torch.tensor(noise_table.ROWS, device=device).to(torch.int32)
    return list(rows.view(torch.float32).unbind(1))


def normal(indices: Tensor, key: int, seed: Tensor) -> Tensor:
    """Return `normal-v1` at the elements' indices, float32. docs/noise.md derives it."""
    c0, c1, c2, c3 = table(indices.device)
    word = words(indices, key, seed, 4) | 1
    f = torch.where(word > LOW // 2, word - (LOW + 1), word).float()
    t = f.abs()
    row = (t.view(torch.int32) >> (23 - noise_table.SEGMENT_BITS)) % len(noise_table.ROWS)
    z = fma(fma(fma(c3[row], t, c2[row]), t, c1[row]), t, c0[row])
    return torch.where(f < 0, -z, z)


def rademacher(indices: Tensor, key: int, seed: Tensor) -> Tensor:
    """Return `rademacher-v1` at the elements' indices: float32 -1 if the bit is set, else 1."""
    return 1.0 - 2.0 * ((words(indices, key, seed, 128) >> (indices % 32)) & 1).float()


NOISE = {NORMAL: normal, RADEMACHER: rademacher}


def rounding_bits(indices: Tensor, key: int, seed: Tensor) -> Tensor:
    """Return 16 random bits for each element. Eight share a counter; a word's low half is first."""
    word = words(indices, key, seed, 8, ROUNDING_DOMAIN)
    return (word >> (indices % 2 * 16)) & 0xFFFF


def round_to(value: Tensor, dtype: torch.dtype, random: Tensor | None) -> Tensor:
    """Round float32 to `dtype`, to nearest even or, given random bits, stochastically.

    Stochastic rounding adds the random bits below the last kept bit and truncates. So the
    probability of the upper neighbour is the value's distance from the lower one, in units of
    their spacing (for float16 to 13 bits). Values that `dtype` can hold, infinities and NaN stay.

    Args:
        value: float32.
        dtype: float32, bfloat16 or float16.
        random: 16 random bits for each value, int64. None: to nearest even.
    """
    if random is None or dtype == torch.float32:
        return value.to(dtype)
    bits = value.view(torch.int32).long()
    magnitude, sign = bits & 0x7FFFFFFF, (bits >> 31) & 1
    if dtype == torch.bfloat16:
        infinity, quiet_nan = 0x7F80, 0x7FC0
        rounded = (magnitude + random) >> 16
    else:
        infinity, quiet_nan = 0x7C00, 0x7E00
        random = random >> 3
        fixed = (value.abs().clamp(max=2.0**-14) * 2.0**37).long()  # in units of 2**-37
        tiny = (fixed + random) >> 13
        rounded = ((magnitude + random) >> 13) - ((127 - 15) << 10)
        rounded = torch.where(value.abs() < 2.0**-14, tiny, rounded).clamp(max=infinity)
    rounded = torch.where(value.isinf(), infinity, rounded)
    rounded = torch.where(value.isnan(), quiet_nan, rounded)
    return (rounded | (sign << 15)).to(torch.int16).view(dtype)


def perturbed(
    part: Tensor,
    indices: Tensor,
    key: int,
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> Tensor:
    """Return `round(part + sum_k coeffs[k] * z_k)`.

    Args:
        part: the elements.
        indices: their indices in the parameter, int64, of the shape of `part`.
        key: the parameter's key, 64 bits.
        seeds: int64 (K,).
        coeffs: float32 (K,).
        rounding_seed: int64 (). None: to nearest even.
        stream: the stream's code.
    """
    value = part.float()
    for seed, coeff in zip(seeds, coeffs, strict=True):
        value = fma(coeff, NOISE[stream](indices, key, seed), value)
    random = None if rounding_seed is None else rounding_bits(indices, key, rounding_seed)
    return round_to(value, part.dtype, random)


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
    """Implement the op `fedspzo::perturb_out`. `functional.perturb` is its public form."""
    for source, out, key, offset in zip(sources, outs, keys, offsets, strict=True):
        flat = source.detach().reshape(-1)
        result = out.detach().reshape(-1)  # this is a copy if `out` is not contiguous
        for start in range(0, flat.numel(), ELEMENTS_AT_ONCE):
            part = flat[start : start + ELEMENTS_AT_ONCE]
            indices = torch.arange(part.numel(), device=part.device) + (offset + start)
            result[start : start + ELEMENTS_AT_ONCE] = perturbed(
                part, indices, key, seeds, coeffs, rounding_seed, stream
            )
        if not out.is_contiguous():
            out.detach().copy_(result.view(out.shape))


def perturb_(
    tensors: list[Tensor],
    keys: list[int],
    offsets: list[int],
    seeds: Tensor,
    coeffs: Tensor,
    rounding_seed: Tensor | None,
    stream: int,
) -> None:
    """Implement the op `fedspzo::perturb_`. `functional.perturb_` is its public form."""
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
    """Implement the op `fedspzo::perturb_rows`. `functional.perturb_rows` is its public form.

    A row that `source` lacks raises IndexError on the CPU. Other devices write NaN for it, as the
    check would wait for `rows`.
    """
    count, width = source.shape
    there = (rows >= 0) & (rows < count)
    if rows.device.type == "cpu" and not there.all():
        raise IndexError(f"rows: {rows[~there][0].item()} is not in [0, {count})")
    columns = torch.arange(width, device=source.device)
    at_once = max(1, ELEMENTS_AT_ONCE // max(1, width))
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        row = rows[some].clamp(0, count - 1).unsqueeze(1)
        indices = offset + row * width + columns
        part = perturbed(
            source.detach()[row.squeeze(1)], indices, key, seeds, coeffs, rounding_seed, stream
        )
        out.detach()[some] = part.masked_fill(~there[some].unsqueeze(1), torch.nan)

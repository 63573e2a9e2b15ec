"""The op and the noise streams in plain torch: the oracle every other backend is compared with.

It runs on any device and is written to be read; speed is the other backends' business. Words of
32 bits are held in int64 tensors, because torch has little arithmetic on unsigned integers.
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
"""Set in counter word 1 for rounding bits; an element index never reaches that bit."""

ELEMENTS_AT_ONCE = 1 << 20


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10 of Random123 (Salmon et al., 2011).

    Args:
        counter: four int64 tensors of one shape, each holding 32-bit words.
        key: two int64 tensors that broadcast with them.

    Returns:
        Four int64 tensors of output words in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        p0 = c0 * PHILOX_MULTIPLIERS[0]  # wraps to the product's 64 bits, sign aside
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
    """The Philox word that holds each element, when one counter serves `elements` elements."""
    counter = indices // elements
    high = counter >> 32
    keys = [torch.full_like(counter, word) for word in (key & LOW, (key >> 32) & LOW)]
    four = philox4x32([counter & LOW, high | domain, *keys], [seed & LOW, (seed >> 32) & LOW])
    place = indices % elements // (elements // 4)
    return torch.stack(four).gather(0, place.unsqueeze(0)).squeeze(0)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """float32 a * b + c with one rounding, as the hardware's fused multiply-add gives it.

    The product of two float32 is exact in float64. Their float64 sum is rounded to odd (its error,
    by Knuth's two-sum, tells whether it is inexact and to which side), so that the final rounding
    to float32 is the only one that counts (Boldo and Melquiond, 2008).
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
    """The columns c0 to c3 of the table of `normal-v1`, float32 (rows,) each."""
    rows = torch.tensor(noise_table.ROWS, device=device).to(torch.int32)
    return list(rows.view(torch.float32).unbind(1))


def normal(indices: Tensor, key: int, seed: Tensor) -> Tensor:
    """`normal-v1` at the given element indices; docs/noise.md derives it."""
    c0, c1, c2, c3 = table(indices.device)
    word = words(indices, key, seed, 4) | 1
    f = torch.where(word > LOW // 2, word - (LOW + 1), word).float()
    t = f.abs()
    row = (t.view(torch.int32) >> (23 - noise_table.SEGMENT_BITS)) % len(noise_table.ROWS)
    z = fma(fma(fma(c3[row], t, c2[row]), t, c1[row]), t, c0[row])
    return torch.where(f < 0, -z, z)


def rademacher(indices: Tensor, key: int, seed: Tensor) -> Tensor:
    """`rademacher-v1`: -1 where the element's bit is set, else 1."""
    return 1.0 - 2.0 * ((words(indices, key, seed, 128) >> (indices % 32)) & 1).float()


NOISE = {NORMAL: normal, RADEMACHER: rademacher}


def rounding_bits(indices: Tensor, key: int, seed: Tensor) -> Tensor:
    """16 random bits for each element: eight elements a counter, the low half word first."""
    word = words(indices, key, seed, 8, ROUNDING_DOMAIN)
    return (word >> (indices % 2 * 16)) & 0xFFFF


def round_to(value: Tensor, dtype: torch.dtype, random: Tensor | None) -> Tensor:
    """Round float32 to `dtype`, to nearest even or, given 16 random bits, stochastically.

    Stochastic rounding adds the random bits below the last kept bit and truncates, so a value
    goes to its upper neighbour with the probability of its distance from the lower one (float16:
    to 13 bits). What `dtype` holds exactly stays; infinities and NaN stay what they are.
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
    """`round(part + sum_k coeffs[k] * z_k)` where `indices` are the elements' in the parameter."""
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
    """The op `fedspzo::perturb_out` on any device; `functional.perturb` is its public form."""
    for source, out, key, offset in zip(sources, outs, keys, offsets, strict=True):
        flat = source.detach().reshape(-1)
        result = out.detach().reshape(-1)  # a copy where the tensor is not contiguous
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
    """The op `fedspzo::perturb_` on any device; `functional.perturb_` is its public form."""
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
    """The op `fedspzo::perturb_rows` on any device; `functional.perturb_rows` is its public form.

    A row that `source` has not is an error on the CPU. On other devices that would mean to wait for
    `rows`, so what is written for it is NaN.
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

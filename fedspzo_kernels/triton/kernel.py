"""The kernels in Triton. Their bits are those of csrc/noise.h and csrc/rounding.h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from .. import noise_table

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
TABLE_SHIFT = tl.constexpr(23 - noise_table.SEGMENT_BITS)
M0, M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
W0, W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that kernels call: jitted, or as it is for the interpreter.

    The interpreter patches its language anew in each call of a jitted function, which took a third
    of its time. Within a kernel that it runs, the language is patched already.
    """
    return function if INTERPRETED.value else triton.jit(function)


@inner
def fma(a, b, c):
    """Return float32 a * b + c, rounded once."""
    if INTERPRETED:
        # The interpreter's fma rounds twice. As in the reference, the product is exact in float64,
        # and the sum is rounded to odd, so that the last rounding gives the right result.
        p = a.to(tl.float64) * b.to(tl.float64)
        d = c.to(tl.float64)
        s = p + d
        larger = s - p
        error = (p - (s - larger)) + (d - larger)
        bits = s.to(tl.int64, bitcast=True)
        away = tl.where((error > 0) == (s > 0), 1, -1)
        finite = (bits & 0x7FF0000000000000) != 0x7FF0000000000000
        bits = tl.where(finite & (error != 0) & ((bits & 1) == 0), bits + away, bits)
        return bits.to(tl.float64, bitcast=True).to(tl.float32)
    else:
        return tl.fma(a, b, c)


@inner
def product(a, m: tl.constexpr):
    """Return the high and the low word of a * m."""
    p = a.to(tl.uint64) * m
    return (p >> 32).to(tl.uint32), p.to(tl.uint32)


@inner
def philox(counter, high, key, seed):
    """Return the four words of each counter. The counters share `high`, `key` and `seed`."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    h1, l1 = product(key.to(tl.uint32), M1)
    h0, l0 = product(counter, M0)
    c0, c1 = h1 ^ high ^ k0, l1
    c2, c3 = h0 ^ ((key >> 32).to(tl.uint32) ^ k1), l0
    for _ in tl.static_range(9):
        k0 += W0
        k1 += W1
        h0, l0 = product(c0, M0)
        h1, l1 = product(c2, M1)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
    return c0, c1, c2, c3


@inner
def normal(word, table):
    """Return `normal-v1`. A row's number in `table` includes the sign of f (`signed_table`)."""
    f = (word | 1).to(tl.int32, bitcast=True).to(tl.float32)
    row = f.to(tl.uint32, bitcast=True) >> TABLE_SHIFT
    low, high = tl.load(table + 2 * row), tl.load(table + 2 * row + 1)
    c0, c1 = low.to(tl.uint32), (low >> 32).to(tl.uint32)
    c2, c3 = high.to(tl.uint32), (high >> 32).to(tl.uint32)
    z = fma(c3.to(tl.float32, bitcast=True), f, c2.to(tl.float32, bitcast=True))
    z = fma(z, f, c1.to(tl.float32, bitcast=True))
    return fma(z, f, c0.to(tl.float32, bitcast=True))


@inner
def interleave4(a, b, c, d):
    """Return a0 b0 c0 d0 a1 b1 ..."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@inner
def stochastic(value, random, dtype: tl.constexpr):
    """Round to `dtype` stochastically, with 16 random bits, as csrc/rounding.h does."""
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    sign = (bits >> 16) & 0x8000
    if dtype == tl.bfloat16:
        rounded = (magnitude + random) >> 16
        nan = 0x7FC0
    else:
        random = random >> 3
        small = tl.minimum(tl.abs(value), 6.103515625e-05)  # 2^-14
        tiny = ((small * 137438953472.0).to(tl.uint32) + random) >> 13  # in units of 2^-37
        rounded = ((magnitude + random) >> 13) - ((127 - 15) << 10)
        nan = 0x7E00
        rounded = tl.where(magnitude < 0x38800000, tiny, tl.minimum(rounded, 0x7C00))
    rounded = tl.where(magnitude > 0x7F800000, nan, rounded)
    return (rounded | sign).to(tl.uint16).to(dtype, bitcast=True)


@inner
def nearest(value, dtype: tl.constexpr):
    """Round to `dtype`, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter's conversion truncates
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 0x40, rounded)
        return rounded.to(tl.uint16).to(dtype, bitcast=True)
    else:
        return value.to(dtype)


@inner
def perturbed(
    x,
    index,
    key,
    seeds,
    coeffs,
    terms,
    rounding_seed,
    table,
    NORMAL: tl.constexpr,
    ONE_TERM: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Return `round(x + sum_k coeffs[k] * z_k)` for a block x of 4 * GROUPS elements.

    `index` is the index of the block's first element in the whole parameter. It is a multiple of
    4 * GROUPS, so the block's counters share their high word. `table` is not read for
    `rademacher-v1`.
    """
    BLOCK: tl.constexpr = 4 * GROUPS
    value = x.to(tl.float32)
    group = tl.arange(0, GROUPS).to(tl.uint32)
    key = key.to(tl.int64).to(tl.uint64, bitcast=True)
    for k in range(1 if ONE_TERM else terms):
        seed = tl.load(seeds + k).to(tl.uint64, bitcast=True)
        coeff = tl.load(coeffs + k)
        if NORMAL:
            first = index // 4
            w0, w1, w2, w3 = philox(
                first.to(tl.uint32) + group, (first >> 32).to(tl.uint32), key, seed
            )
            z = interleave4(
                normal(w0, table), normal(w1, table), normal(w2, table), normal(w3, table)
            )
        else:
            first = index // 128
            local = tl.arange(0, BLOCK).to(tl.uint32)
            w0, w1, w2, w3 = philox(
                first.to(tl.uint32) + local // 128, (first >> 32).to(tl.uint32), key, seed
            )
            place_of_word = local // 32 % 4
            word = tl.where(
                place_of_word < 2,
                tl.where(place_of_word == 0, w0, w1),
                tl.where(place_of_word == 2, w2, w3),
            )
            z = (0x3F800000 | (((word >> (local % 32)) & 1) << 31)).to(tl.float32, bitcast=True)
        value = fma(coeff, z, value)
    if STOCHASTIC:
        eighth = tl.arange(0, BLOCK // 8).to(tl.uint32)
        first = index // 8
        seed = tl.load(rounding_seed).to(tl.uint64, bitcast=True)
        w0, w1, w2, w3 = philox(
            first.to(tl.uint32) + eighth, (first >> 32).to(tl.uint32) | 0x80000000, key, seed
        )
        words = interleave4(w0, w1, w2, w3)
        random = tl.interleave(words & 0xFFFF, words >> 16)
        return stochastic(value, random, x.dtype)
    else:
        return nearest(value, x.dtype)


@triton.jit(do_not_specialize=["offset", "shift", "key", "terms"])
def perturb_kernel(
    source,
    out,
    numel,
    offset,
    shift,
    key,
    seeds,
    coeffs,
    terms,
    rounding_seed,
    table,
    NORMAL: tl.constexpr,
    ONE_TERM: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    UNIT: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Perturb one block of a tensor's elements, at a multiple of 4 * GROUPS of the parameter.

    The tensor begins UNIT * `shift` elements after the multiple `offset`. UNIT is 0 if it begins
    there. Otherwise it tells the compiler the alignment of the elements' addresses. `source` and
    `out` may be the same.
    """
    BLOCK: tl.constexpr = 4 * GROUPS
    start = tl.program_id(0).to(tl.int64) * BLOCK
    place = start - shift * UNIT + tl.arange(0, BLOCK)
    inside = place < numel
    if UNIT > 0:
        inside = inside & (place >= 0)
    x = tl.load(source + place, mask=inside)
    y = perturbed(
        x,
        offset.to(tl.int64) + start,
        key,
        seeds,
        coeffs,
        terms,
        rounding_seed,
        table,
        NORMAL,
        ONE_TERM,
        STOCHASTIC,
        GROUPS,
    )
    tl.store(out + place, y, mask=inside)


@triton.jit(do_not_specialize=["key", "terms"])
def rows_kernel(
    source,
    rows,
    out,
    count,
    width,
    offset,
    key,
    seeds,
    coeffs,
    terms,
    rounding_seed,
    table,
    NORMAL: tl.constexpr,
    ONE_TERM: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Perturb one block of a row that is looked up: block program_id(1) of row program_id(0).

    Blocks begin at multiples of 4 * GROUPS of the parameter, wherever the row begins. `offset` is
    the index of the source's first element. A row that the source lacks becomes NaN.
    """
    BLOCK: tl.constexpr = 4 * GROUPS
    number = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + number)
    there = (row >= 0) & (row < count)
    row = tl.where(there, row, 0)
    first = offset + row * width  # the row's first element
    index = (first // BLOCK + tl.program_id(1)) * BLOCK
    place = index - first + tl.arange(0, BLOCK)
    inside = (place >= 0) & (place < width)
    readable = tl.where(there, width, 0)
    x = tl.load(source + row * width + place, mask=(place >= 0) & (place < readable))
    y = perturbed(
        x,
        index,
        key,
        seeds,
        coeffs,
        terms,
        rounding_seed,
        table,
        NORMAL,
        ONE_TERM,
        STOCHASTIC,
        GROUPS,
    )
    tl.store(out + number * width + place, tl.where(there, y, float("nan")), mask=inside)

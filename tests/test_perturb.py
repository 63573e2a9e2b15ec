"""The op `perturb_`: every compiled backend against the reference bit for bit, and its contract."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from kernel_backends import CAPABILITIES, REFERENCE, Op, capability, same_bits, why_not

from fedspzo_kernels import noise, perturb_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Around the vectors (16, 32), the spans (4096) and the reference's pieces (2**20).
SIZES = (0, 1, 3, 15, 31, 32, 33, 127, 4095, 4097, 8200)
OFFSETS = (0, 4093, 2**34 - 5, 2**62 + 6)
TERMS = (((7,), (0.25,)), ((1, -(2**63), 2**62 + 5), (0.5, -1e-3, 3.0)))


def values(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Normals, with tiny, huge and special values among them."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    if size > 100:
        x[:20] *= 1e-7
        x[20:30] *= 1e-40
        x[30:40] *= 6e4
        x[40:43] = torch.tensor([torch.inf, -torch.inf, torch.nan])
        x[43:45] = torch.tensor([0.0, -0.0])
    return x.to(dtype)


def both(op: Op, make: Any, *args: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    fast, slow = make(), make()
    op(fast, *args)
    REFERENCE(slow, *args)
    return fast, slow


def run(
    op: Op, dtype: torch.dtype, offset: int, terms: Any, rounding_seed: int | None, stream: int
) -> list[torch.Tensor]:
    tensors = [values(size, dtype) for size in SIZES]
    keys = [j * 0x1234567890ABCDE - 2**63 for j in range(len(SIZES))]
    seeds, coeffs = (torch.tensor(column) for column in terms)
    random = None if rounding_seed is None else torch.tensor(rounding_seed)
    op(tensors, keys, [offset] * len(SIZES), seeds, coeffs, random, stream)
    return tensors


@functools.cache
def expected(*args: Any) -> list[torch.Tensor]:
    return run(REFERENCE, *args)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("rounding_seed", [None, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_equal_the_reference(
    fast: Op, dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    for offset in OFFSETS:
        for terms in TERMS:
            args = (dtype, offset, terms, rounding_seed, stream)
            for a, b in zip(run(fast, *args), expected(*args), strict=True):
                special = b.isnan()
                assert torch.equal(a.isnan(), special)
                assert same_bits(a[~special], b[~special]), (offset, terms, a.numel())


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_memory(fast: Op, dtype: torch.dtype, stream: int) -> None:
    for start in (1, 2, 5):
        got, expected = both(
            fast,
            lambda start=start: [torch.zeros(9000, dtype=dtype)[start:]],
            [5],
            [start],
            torch.tensor([1]),
            torch.tensor([1.0]),
            None,
            stream,
        )
        assert same_bits(got[0], expected[0])


def test_no_write_outside_the_tensor(fast: Op) -> None:
    for dtype in DTYPES:
        buffer = torch.full((5000,), 2.0, dtype=dtype)
        fast([buffer[33:4711]], [1], [3], torch.tensor([1]), torch.tensor([9.0]), None, 0)
        assert (buffer[:33] == 2).all()
        assert (buffer[4711:] == 2).all()
        assert (buffer[33:4711] != 2).any()


def test_many_terms_are_added_in_order_and_rounded_once(fast: Op) -> None:
    generator = torch.Generator().manual_seed(1)
    seeds = torch.randint(-(2**62), 2**62, (300,), generator=generator)
    coeffs = torch.randn(300, generator=generator)
    got, expected = both(
        fast, lambda: [values(700, torch.bfloat16)], [1], [0], seeds, coeffs, None, 0
    )
    assert same_bits(got[0].nan_to_num(), expected[0].nan_to_num())
    in_pieces = values(700, torch.float32)
    whole = in_pieces.clone()
    perturb_([whole], [1], seeds, coeffs)
    for k in range(0, 300, 37):
        perturb_([in_pieces], [1], seeds[k : k + 37], coeffs[k : k + 37])
    assert same_bits(whole.nan_to_num(), in_pieces.nan_to_num())


@pytest.mark.parametrize("name", CAPABILITIES)
def test_threads_do_not_change_bits(name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tensors = [torch.zeros(n) for n in (10, 100_000, 4096, 1)]
            with capability(name):
                perturb_(tensors, [1, 2, 3, 4], [9], [1.0])
            results.append(torch.cat(tensors))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_flush_to_zero_mode_does_not_change_bits(fast: Op) -> None:
    x, coeffs = torch.full((1000,), 1e-39), torch.tensor([1e-39])
    exact, flushed = x.clone(), x.clone()
    fast([exact], [1], [0], torch.tensor([1]), coeffs, None, 0)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU has no flush-to-zero mode")
    try:
        fast([flushed], [1], [0], torch.tensor([1]), coeffs, None, 0)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(exact, flushed)
    assert not same_bits(exact, x)


def test_non_contiguous_tensors_count_row_by_row() -> None:
    base = torch.zeros(6, 8, 5)
    for view in (base.transpose(0, 2), base[::2, 1:7, ::3], base.permute(1, 2, 0), base[0, 0, 0]):
        base.zero_()
        perturb_([view], [1], [2], [1.0])
        assert torch.equal(view.reshape(-1), noise(view.numel(), 1, 2))
        assert base.count_nonzero() == view.numel()


def test_dtypes_may_be_mixed_and_parameters_may_need_gradients() -> None:
    tensors = [torch.nn.Parameter(torch.zeros(9, dtype=dtype)) for dtype in DTYPES]
    versions = [t._version for t in tensors]
    perturb_(tensors, [4, 4, 4], [1, 2], [0.5, 0.25])
    z = 0.5 * noise(9, 4, 1) + 0.25 * noise(9, 4, 2)
    for tensor, version in zip(tensors, versions, strict=True):
        torch.testing.assert_close(tensor.detach().float(), z, atol=1e-2, rtol=1e-2)
        assert tensor._version > version  # autograd hears of the change


def test_restore_in_float32_is_within_rounding() -> None:
    x = values(1000, torch.float32).nan_to_num(0, 0, 0)[50:]
    y = x.clone()
    perturb_([y], [1], [2], [1e-3])
    assert not torch.equal(x, y)
    perturb_([y], [1], [2], [-1e-3])
    torch.testing.assert_close(x, y, atol=1e-9, rtol=2e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_keeps_the_mean(backend: Op, dtype: torch.dtype) -> None:
    """Up with the probability of the distance from below: a binomial count over 20,000 elements.

    False-alarm rate: 5 standard deviations, 6e-7 for each of the 8 comparisons.
    """
    n = 20_000
    for number, (x, fraction) in enumerate([(1.0, 0.25), (-3.5, 0.5), (2.0**-20, 0.125), (0.1, 0)]):
        low = torch.tensor(x).to(dtype)
        high = torch.nextafter(low, torch.tensor(torch.inf if x > 0 else -torch.inf, dtype=dtype))
        target = low.double() + fraction * (high.double() - low.double())
        # rademacher with coefficient c moves to target or away from it; keep those at target
        move = (target - low.double()).float().item()
        sign = torch.zeros(n)
        backend([sign], [1], [0], torch.tensor([3]), torch.tensor([1.0]), None, 1)
        tensor = low.repeat(n)
        seeds, coeffs = torch.tensor([3]), torch.tensor([move])
        backend([tensor], [1], [0], seeds, coeffs, torch.tensor(number), 1)
        there = tensor[sign > 0]
        assert torch.isin(there, torch.stack([low, high])).all()
        up = (there == high).double().mean().item()
        bound = 5 * (fraction * (1 - fraction) / there.numel()) ** 0.5
        assert abs(up - fraction) <= bound


def test_stochastic_rounding_leaves_exact_values_and_float32_alone() -> None:
    for dtype in DTYPES:
        x = values(500, dtype)
        y = x.clone()
        perturb_([y], [1], [2], [0.0], rounding="stochastic", rounding_seed=5)
        assert torch.equal(x.nan_to_num(), y.nan_to_num())
        assert torch.equal(x.isnan(), y.isnan())
    a, b = torch.zeros(100), torch.zeros(100)
    perturb_([a], [1], [2], [1.0], rounding="stochastic", rounding_seed=5)
    perturb_([b], [1], [2], [1.0])
    assert torch.equal(a, b)


@pytest.mark.slow
def test_opcheck() -> None:
    for dtype in DTYPES:
        for random in (None, torch.tensor(3)):
            args = (
                [torch.randn(10).to(dtype), torch.randn(3, 4).to(dtype)],
                [1, 2],
                [0, 5],
                torch.tensor([1, 2]),
                torch.tensor([0.5, 1.0]),
                random,
                0,
            )
            torch.library.opcheck(torch.ops.fedspzo.perturb_.default, args)


BAD = [
    ({"tensors": [torch.zeros(3, dtype=torch.float64)]}, TypeError, r"tensors\[0\].*float64"),
    ({"tensors": [torch.zeros(3, dtype=torch.int32)]}, TypeError, r"tensors\[0\].*int32"),
    ({"tensors": ["x"]}, TypeError, r"tensors\[0\] is a str"),
    ({"tensors": [torch.zeros(1).expand(3)]}, ValueError, r"tensors\[0\].*expanded"),
    ({"tensors": [torch.eye(3).to_sparse()]}, TypeError, r"tensors\[0\].*sparse"),
    ({"keys": [1, 2]}, ValueError, "keys: 2 for 1 tensors"),
    ({"keys": [2**64]}, ValueError, r"keys\[0\] is 18446744073709551616"),
    ({"offsets": [-1]}, ValueError, r"offsets\[0\] is -1"),
    ({"offsets": [2**63 - 2]}, ValueError, r"offsets\[0\] is 9223372036854775806"),
    ({"offsets": []}, ValueError, "offsets: 0 for 1 tensors"),
    ({"seeds": [1, 2]}, ValueError, "2 seeds for 1 coefficients"),
    ({"seeds": [2**64]}, ValueError, r"seeds\[0\] is 18446744073709551616"),
    ({"seeds": torch.tensor([1.0])}, TypeError, "seeds is a torch.float32"),
    ({"seeds": torch.tensor(1)}, TypeError, r"seeds is a torch.int64 tensor of shape \(\)"),
    ({"coeffs": [float("nan")]}, ValueError, r"coeffs\[0\] is nan"),
    ({"coeffs": [1e39]}, ValueError, r"coeffs\[0\] is inf"),
    ({"coeffs": torch.tensor([float("-inf")])}, ValueError, r"coeffs\[0\] is -inf"),
    ({"coeffs": torch.tensor([1.0]).double()}, TypeError, "coeffs is a torch.float64"),
    ({"rounding": "up"}, ValueError, "rounding is 'up'"),
    ({"rounding": "stochastic"}, ValueError, "rounding_seed is missing"),
    ({"rounding_seed": 3}, ValueError, "rounding_seed is given"),
    ({"rounding": "stochastic", "rounding_seed": torch.ones(2)}, TypeError, "rounding_seed is a"),
    ({"stream": "normal-v2"}, ValueError, "stream is 'normal-v2'.*normal-v1"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_is_named_and_changes_nothing(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    good = torch.zeros(3)
    args: dict[str, Any] = {"tensors": [good], "keys": [1], "seeds": [1], "coeffs": [1.0]}
    with pytest.raises(error, match=message):
        perturb_(**(args | change))
    assert (good == 0).all()


def test_meta_tensors_take_the_fake() -> None:
    perturb_([torch.zeros(3, device="meta")], [1], [1], [1.0])
    with pytest.raises(ValueError, match="keys: 0 for 1 tensors"):
        perturb_([torch.zeros(3, device="meta")], [], [1], [1.0])

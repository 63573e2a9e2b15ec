"""The op out of place and by rows: every backend against the reference, and the public forms."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from kernel_backends import CAPABILITIES, Op, capability, compiled, same_bits, why_not
from test_perturb import DTYPES, OFFSETS, SIZES, TERMS, expected, values
from torch import Tensor

from fedspzo_kernels import Perturber, noise, perturb, perturb_, perturb_rows, reference

MANY = torch.Generator().manual_seed(3)
# none, 3 as in test_perturb, and more than a backend keeps at hand
COUNTS = {
    0: (torch.empty(0, dtype=torch.int64), torch.empty(0)),
    **{len(seeds): (torch.tensor(seeds), torch.tensor(coeffs)) for seeds, coeffs in TERMS},
    70: (
        torch.randint(-(2**63), 2**63 - 1, (70,), generator=MANY),
        torch.randn(70, generator=MANY),
    ),
}
WIDTHS = (1, 3, 16, 33, 770, 4100)


class Forms(NamedTuple):
    """One backend's ops."""

    out: Op
    rows: Op


@pytest.fixture(params=["reference", *CAPABILITIES])
def forms(request: pytest.FixtureRequest) -> Forms:
    """Each implementation."""
    if request.param == "reference":
        return Forms(reference.perturb_out, reference.perturb_rows)
    if reason := why_not(request.param):
        pytest.skip(reason)
    return Forms(compiled(request.param, "perturb_out"), compiled(request.param, "perturb_rows"))


def assert_same(got: Tensor, right: Tensor, *about: object) -> None:
    """The same bits, but for the payload of a NaN."""
    special = right.isnan()
    assert torch.equal(got.isnan(), special), about
    assert same_bits(got[~special], right[~special]), about


@pytest.mark.slow
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("rounding_seed", [None, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_of_place_has_the_bits_of_in_place(
    forms: Forms, dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    keys = [j * 0x1234567890ABCDE - 2**63 for j in range(len(SIZES))]
    random = None if rounding_seed is None else torch.tensor(rounding_seed)
    for offset, terms in itertools.product(OFFSETS, TERMS):
        sources = [values(size, dtype) for size in SIZES]
        outs = [torch.full_like(source, 7) for source in sources]
        scalars = (*(torch.tensor(column) for column in terms), random, stream)
        forms.out(sources, outs, keys, [offset] * len(SIZES), *scalars)
        results = expected(dtype, offset, terms, rounding_seed, stream)
        for source, out, result in zip(sources, outs, results, strict=True):
            assert_same(out, result, offset, terms, len(out))
            assert same_bits(source, values(len(source), dtype))


@functools.cache
def wanted(
    dtype: torch.dtype, size: int, offset: int, count: int, rounding_seed: int | None, stream: int
) -> Tensor:
    """The reference in place on `values`, with key 3."""
    tensor = values(size, dtype)
    random = None if rounding_seed is None else torch.tensor(rounding_seed)
    reference.perturb_([tensor], [3], [offset], *COUNTS[count], random, stream)
    return tensor


@pytest.mark.slow
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_terms(forms: Forms, dtype: torch.dtype, stream: int) -> None:
    source = values(600, dtype)
    for count, seed in itertools.product(COUNTS, (None, 5)):
        scalars = (*COUNTS[count], None if seed is None else torch.tensor(seed), stream)
        whole, out = wanted(dtype, 600, 4000, count, seed, stream), torch.empty_like(source)
        forms.out([source], [out], [3], [4000], *scalars)
        assert_same(out, whole, count)
        ids, rows = torch.tensor([19, 2, 2]), torch.empty(3, 30, dtype=dtype)
        forms.rows(source.view(20, 30), ids, rows, 3, 4000, *scalars)
        assert_same(rows, whole.view(20, 30)[ids], count)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("rounding_seed", [None, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_of_the_whole_parameter(
    forms: Forms, dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    """Of any width, in any order, more than once or not at all."""
    random = None if rounding_seed is None else torch.tensor(rounding_seed)
    for width, offset in itertools.product(WIDTHS, OFFSETS):
        source = values(4 * width, dtype).view(4, width)
        whole = wanted(dtype, 4 * width, offset, 1, rounding_seed, stream).view(4, width)
        for ids in ([], [3], [2, 0, 3, 2, 2]):
            rows = torch.tensor(ids, dtype=torch.int64)
            out = torch.full((len(ids), width), 7, dtype=dtype)
            forms.rows(source, rows, out, 3, offset, *COUNTS[1], random, stream)
            assert_same(out, whole[rows], width, offset, ids)
        assert same_bits(source, values(4 * width, dtype).view(4, width))


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_memory_and_no_write_outside(
    forms: Forms, dtype: torch.dtype, stream: int
) -> None:
    whole = wanted(dtype, 8190, 77, 1, None, stream)
    for start, to in itertools.product((0, 1, 5), (0, 2, 3)):
        source = torch.empty(9000, dtype=dtype)[start : start + 8190]
        source.copy_(values(8190, dtype))
        buffer = torch.full((9000,), 2.0, dtype=dtype)
        forms.out([source], [buffer[to : to + 8190]], [3], [77], *COUNTS[1], None, stream)
        assert_same(buffer[to : to + 8190], whole, start, to)
        buffer[to : to + 8190] = 2.0
        part = buffer[to : to + 4095].view(1, -1)
        forms.rows(source.view(2, -1), torch.tensor([1]), part, 3, 77, *COUNTS[1], None, stream)
        assert_same(part[0], whole[4095:], start, to)
        part.fill_(2.0)
        assert (buffer == 2).all()


def test_a_backend_that_has_perturb_alone_is_enough() -> None:
    key = torch.DispatchKeySet(torch.DispatchKey.CompositeExplicitAutograd)
    source = values(600, torch.bfloat16)
    out = torch.empty_like(source)
    torch.ops.fedspzo.perturb_out.default.redispatch(
        key, [source], [out], [3], [4000], *COUNTS[3], None, 0
    )
    assert_same(out, wanted(torch.bfloat16, 600, 4000, 3, None, 0))


@pytest.mark.parametrize("name", CAPABILITIES)
def test_threads_do_not_change_bits(name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    source, rows = values(300 * 333, torch.bfloat16).view(300, 333), torch.arange(299, 0, -1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with capability(name):
                (whole,) = perturb([source], [1], [9, 8], [1.0, 2.0])
                part = perturb_rows(source, rows, 1, [9, 8], [1.0, 2.0])
            assert_same(part, whole[rows])
            results.append(whole)
    finally:
        torch.set_num_threads(before)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    weight, right = torch.zeros(4), noise(4, key=1, seed=2)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(noise(4, key=1, seed=2), right)
        assert torch.equal(perturb([weight], [1], [], [])[0], weight)
        assert torch.equal(perturb([weight], [1], [2], [1.0])[0], right)
    finally:
        torch.set_default_dtype(torch.float32)


def test_opcheck() -> None:
    ops = torch.ops.fedspzo
    for dtype, random in itertools.product(DTYPES, (None, torch.tensor(3))):
        a, b = torch.randn(10).to(dtype), torch.randn(3, 4).to(dtype)
        scalars = (torch.tensor([1, 2]), torch.tensor([0.5, 1.0]), random, 0)
        outs = [torch.empty_like(a), torch.empty_like(b)]
        torch.library.opcheck(ops.perturb_out.default, ([a, b], outs, [1, 2], [0, 5], *scalars))
        rows, out = torch.tensor([2, 2, 0, 1, 2]), torch.empty(5, 4, dtype=dtype)
        torch.library.opcheck(ops.perturb_rows.default, (b, rows, out, 1, 5, *scalars))


def test_rows_that_are_not_there_are_refused_by_each_op(forms: Forms) -> None:
    """The op is the last to look before memory is read: it has to refuse, whoever calls it."""
    scalars = (torch.tensor([1]), torch.tensor([1.0]), None, 0)
    for row in (-1, 3, 2**62):
        out = torch.zeros(2, 4)
        with pytest.raises((IndexError, RuntimeError), match=rf"rows.*{row}"):
            forms.rows(torch.zeros(3, 4), torch.tensor([0, row]), out, 1, 0, *scalars)
        assert (out == 0).all()


@pytest.mark.parametrize("name", CAPABILITIES[-1:])
def test_the_compiled_ops_check_before_they_write(name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    ops, scalars = torch.ops.fedspzo, (*COUNTS[1], None, 0)
    a, b, rows = torch.zeros(3, 4), torch.zeros(2, 4), torch.tensor([1])
    for outs, message in (
        ([], "outs: 0 for 1"),
        ([b], r"outs\[0\].*size"),
        ([a.half()], r"outs\[0\].*dtype"),
        ([torch.zeros(4, 3).T], r"outs\[0\].*contiguous"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.perturb_out([a], outs, [1], [0], *scalars)
    for source, ids, message in (
        (a.view(12), rows, "source.*two dimensions"),
        (a, rows.int(), "rows.*int64"),
        (a, torch.tensor([1, 2, 0]), "out.*row"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.perturb_rows(source, ids, b, 1, 0, *scalars)
    assert (b == 0).all()


def test_nothing_outside_the_package_calls_the_registered_ops() -> None:
    sources = list((Path(__file__).parents[1] / "python").rglob("*.py"))
    assert sources
    assert not [path.name for path in sources if "ops.fedspzo" in path.read_text()]


class TestPublicForms:
    """`perturb`, `perturb_rows` and `Perturber`."""

    @staticmethod
    def tensors() -> list[Tensor]:
        """All dtypes and layouts; one needs a gradient."""
        base = torch.arange(240.0).view(6, 8, 5)
        given = [base.transpose(0, 2), base[::2, 1:7, ::3].bfloat16(), torch.nn.Parameter(base + 1)]
        return [*given, torch.arange(9).half(), torch.empty(0, 3), torch.tensor(2.0)]

    @pytest.mark.parametrize("stream", ["normal-v1", "rademacher-v1"])
    def test_three_ways_to_the_same_bits(self, stream: str) -> None:
        settings: dict[str, Any] = {"rounding": "stochastic", "rounding_seed": 4}
        placed: dict[str, Any] = {"offsets": [0, 9, 2**62, 3, 1, 2], "stream": stream}
        seeds, coeffs, keys = [1, 2**64 - 1], [0.5, -2.0], [*range(5), 2**64 - 1]
        results = [tensor.detach().clone() for tensor in self.tensors()]
        perturb_(results, keys, seeds, coeffs, **settings, **placed)
        sources, outs = self.tensors(), [torch.zeros_like(t.detach()) for t in self.tensors()]
        new = perturb(sources, keys, seeds, coeffs, **settings, **placed)
        given = perturb(sources, keys, seeds, coeffs, out=outs, **settings, **placed)
        perturber = Perturber(sources, keys, **placed)
        written = perturber.add(torch.tensor([1, -1]), torch.tensor(coeffs), **settings)
        for source, same in zip(sources, self.tensors(), strict=True):
            assert torch.equal(source, same)
        perturber.add_(seeds, coeffs, **settings)
        for j, result in enumerate(results):
            assert given[j] is outs[j]
            for other in (new[j], outs[j], written[j], sources[j].detach()):
                assert_same(other.contiguous(), result.contiguous(), j)

    def test_a_perturber_is_used_again_and_again(self) -> None:
        tensors = [torch.zeros(9), torch.zeros(5, 2).T]
        perturber = Perturber(tensors, [1, 2])
        for seed in range(3):
            perturber.add_([seed], [1.0])
        expected = [torch.zeros(9), torch.zeros(2, 5)]
        for seed in range(3):
            perturb_(expected, [1, 2], [seed], [1.0])
        assert all(map(torch.equal, tensors, expected))

    def test_autograd_hears_of_what_is_written(self) -> None:
        source, out = torch.nn.Parameter(torch.zeros(4, 2)), torch.zeros(4, 2)
        before = source._version, out._version
        perturb([source], [1], [1], [1.0], out=[out])
        assert source._version == before[0]
        assert out._version > before[1]
        middle = out._version
        perturb_rows(source, torch.arange(4), 1, [1], [1.0], out=out)
        assert out._version > middle
        assert not out.requires_grad
        Perturber([source], [1]).add_([1], [1.0])
        assert source._version > before[0]

    def test_memory_that_moved_is_named(self) -> None:
        tensors = [torch.zeros(3), torch.zeros(3)]
        perturber = Perturber(tensors, [1, 2])
        kept, tensors[1].data = tensors[1].data, torch.ones(3)
        for call in (perturber.add_, perturber.add):
            with pytest.raises(RuntimeError, match=r"tensors\[1\] has other memory.*a new one"):
                call([1], [1.0])
        assert (tensors[1] == 1).all()
        assert (tensors[0] == 0).all()
        assert (kept == 0).all()

    def test_rows_of_any_layout_and_of_a_shard(self) -> None:
        whole = torch.zeros(12, 5)
        perturb_([whole], [1], [2], [1.0])
        shard, rows = torch.zeros(5, 4).T, torch.arange(10)[1::3] % 4
        got = perturb_rows(shard, rows, 1, [2], [1.0], offset=40)
        assert torch.equal(got, whole[8:][rows])
        out = torch.zeros(3, 10)[:, ::2]
        assert perturb_rows(shard, rows, 1, [2], [1.0], offset=40, out=out) is out
        assert torch.equal(out, got)
        ids = torch.empty(0, dtype=torch.int64)
        assert perturb_rows(torch.zeros(0, 5), ids, 1, [2], [1.0]).shape == (0, 5)
        assert perturb_rows(torch.zeros(3, 0), torch.tensor([2]), 1, [2], [1.0]).shape == (1, 0)

    def test_meta_tensors_take_the_fakes(self) -> None:
        source = torch.zeros(4, 3, device="meta")
        (out,) = perturb([source], [1], [1], [1.0])
        assert (out.device.type, out.shape) == ("meta", (4, 3))
        rows = torch.zeros(7, dtype=torch.int64, device="meta")
        assert perturb_rows(source, rows, 1, [1], [1.0]).shape == (7, 3)


BAD_OUT = [
    ([], "out: 0 for 1 tensors; pass one a tensor"),
    ([torch.zeros(4)], r"out\[0\] has shape \(4,\).*pass shape \(3,\)"),
    ([torch.zeros(3).half()], r"out\[0\].*float16 on cpu; pass shape.*torch.float32"),
    ([torch.zeros(3, device="meta")], r"out\[0\].* on meta; pass.* on cpu"),
    ([torch.zeros(1).expand(3)], r"out\[0\].*expanded"),
]


@pytest.mark.parametrize(("out", "message"), BAD_OUT)
def test_a_bad_out_is_named(out: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perturb([torch.zeros(3)], [1], [1], [1.0], out=out)


BAD_ROWS = [
    ({"source": torch.zeros(6)}, ValueError, r"source has shape \(6,\).*\(count, width\)"),
    ({"source": torch.zeros(3, 2).double()}, TypeError, "source has dtype torch.float64"),
    ({"rows": torch.tensor([0, 3])}, IndexError, r"rows has 3; pass indices in \[0, 3\)"),
    ({"rows": torch.tensor([-1])}, IndexError, "rows has -1; pass indices in"),
    ({"rows": torch.tensor([1], dtype=torch.int32)}, TypeError, "rows is a torch.int32"),
    ({"rows": torch.tensor(1)}, TypeError, r"rows is a torch.int64 tensor of shape \(\)"),
    ({"rows": torch.ones(1, device="meta").long()}, TypeError, "rows.*on meta; pass.*on cpu"),
    ({"rows": [1]}, TypeError, "rows is a list; pass"),
    ({"key": 2**64}, ValueError, "key is 18446744073709551616"),
    ({"offset": 2**63 - 6}, ValueError, "offset is 9223372036854775802"),
    ({"coeffs": [1.0, 2.0]}, ValueError, "1 seeds for 2 coefficients"),
    ({"stream": "normal"}, ValueError, "stream is 'normal'"),
    ({"rounding": "stochastic"}, ValueError, "rounding_seed is missing"),
    ({"out": torch.zeros(1, 3)}, ValueError, r"out has shape \(1, 3\).*pass shape \(1, 2\)"),
    ({"out": torch.zeros(2, 2)[:1].half()}, ValueError, "out has shape.*torch.float16"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_ROWS)
def test_bad_rows_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"source": torch.zeros(3, 2), "rows": torch.tensor([1])}
    arguments |= {"key": 1, "seeds": [1], "coeffs": [1.0]} | change
    with pytest.raises(error, match=message):
        perturb_rows(**arguments)

"""The Triton kernel against the reference, bit for bit: interpreted where there is no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernel_backends import REFERENCE, same_bits
from test_forms import COUNTS, assert_same
from test_perturb import DTYPES, TERMS, values
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import triton
import triton.language as tl

import fedspzo_kernels.triton
from fedspzo_kernels import noise_table, reference
from fedspzo_kernels.triton import perturb_, perturb_out, perturb_rows, signed_table
from fedspzo_kernels.triton.kernel import fma

pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (0, 1, 33, 4097)
OFFSETS = (0, 3, 40, 2**34 - 5)  # no shift, any shift, one of whole vectors, any


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("rounding_seed", [None, 11])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:(invalid|overflow):RuntimeWarning")
def test_bits_equal_the_reference(
    dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    random = None if rounding_seed is None else torch.tensor(rounding_seed, device=DEVICE)
    for offset in OFFSETS:
        for terms in TERMS:
            seeds, coeffs = (torch.tensor(column, device=DEVICE) for column in terms)
            results = []
            for op in (perturb_, REFERENCE):
                tensors = [values(size, dtype).to(DEVICE) for size in SIZES]
                keys = [7 - 3 * j for j in range(len(SIZES))]
                op(tensors, keys, [offset] * len(SIZES), seeds, coeffs, random, stream)
                results.append(torch.cat(tensors))
            got, expected = results
            special = expected.isnan()
            assert torch.equal(got.isnan(), special)
            assert same_bits(got[~special], expected[~special]), (offset, terms)


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("rounding_seed", [None, 11])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:(invalid|overflow):RuntimeWarning")
def test_out_of_place_and_rows_have_the_reference_bits(
    dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    random = None if rounding_seed is None else torch.tensor(rounding_seed, device=DEVICE)
    cases = ((33, 0, 1), (1030, 2**62 + 6, 3), (16, 16, 0))
    for width, offset, count in cases:
        scalars = (*(column.to(DEVICE) for column in COUNTS[count]), random, stream)
        source = values(5 * width, dtype).to(DEVICE).view(5, width)
        expected, out = torch.empty_like(source), torch.empty_like(source)
        reference.perturb_out([source], [expected], [-7], [offset], *scalars)
        perturb_out([source], [out], [-7], [offset], *scalars)
        assert_same(out, expected, width)
        rows = torch.tensor([4, 1, 1, 0, 4], device=DEVICE)
        perturb_rows(source, rows, out, -7, offset, *scalars)
        assert_same(out, expected[rows], width)
        assert_same(source, values(5 * width, dtype).to(DEVICE).view(5, width))


def test_a_row_that_is_not_there_is_nan() -> None:
    for dtype in DTYPES:
        source, rows = torch.zeros(3, 8, dtype=dtype), torch.tensor([3, 1, -1, 2**62])
        out = torch.zeros(4, 8, dtype=dtype, device=DEVICE)
        scalars = (torch.tensor([1]).to(DEVICE), torch.tensor([1.0]).to(DEVICE), None, 0)
        perturb_rows(source.to(DEVICE), rows.to(DEVICE), out, 1, 0, *scalars)
        assert out.isnan().all(1).tolist() == [True, False, True, True]


def test_blocks_cover_every_row_wherever_it_begins() -> None:
    """Many widths and offsets around a block of 1024; constant noise is seen where it is added."""
    scalars = (torch.tensor([1]).to(DEVICE), torch.tensor([1.0]).to(DEVICE), None, 1)
    for width in (1, 512, 1000, 1024, 1025, 1536, 2048, 2050):
        for offset in (0, 1, 512, 1023, 1024):
            source = torch.zeros(3, width, device=DEVICE)
            rows = torch.tensor([2, 0], device=DEVICE)
            out = torch.zeros(2, width, device=DEVICE)
            perturb_rows(source, rows, out, 1, offset, *scalars)
            assert (out.abs() == 1).all(), (width, offset)


def test_kernels_are_launched_on_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may not be the current one: CUDA launches on that."""
    here, events = fedspzo_kernels.triton, []

    class Guard:
        def __init__(self, tensor: Tensor) -> None:
            self.device = tensor.device

        def __enter__(self) -> None:
            events.append(self.device)

        def __exit__(self, *exc_info: object) -> None:
            events.append("left")

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **kwargs: events.append("launched")

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    for name in ("perturb_kernel", "rows_kernel"):
        monkeypatch.setattr(here, name, Kernel())
    scalars = (torch.tensor([1]), torch.tensor([1.0]), None, 0)
    table, rows = torch.zeros(3, 4), torch.tensor([1])
    perturb_([table], [1], [0], *scalars)
    perturb_out([table], [table.clone()], [1], [0], *scalars)
    perturb_rows(table, rows, torch.zeros(1, 4), 1, 0, *scalars)
    assert events == [table.device, "launched", "left"] * 3


def test_the_signed_table_has_each_row_twice() -> None:
    table = signed_table(torch.device("cpu")).view(torch.float32)
    used = table.any(1)
    assert int(used.sum()) == 2 * 62  # the octave of 2**31 is zero
    assert torch.equal(table[254:318] * torch.tensor([-1, 1, -1, 1]), table[766:830])


Fma = Callable[[Tensor, Tensor, Tensor], Tensor]


@triton.jit
def fma_kernel(a, b, c, out, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    result = fma(tl.load(a + place), tl.load(b + place), tl.load(c + place))
    tl.store(out + place, result)


def fma_of_the_kernel(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The function that perturb_kernel calls, on a multiple of 4096 elements."""
    a, b, c = (x.contiguous().to(DEVICE) for x in (a, b, c))
    out = torch.empty_like(a)
    fma_kernel[(len(a) // 4096,)](a, b, c, out, BLOCK=4096, enable_fp_fusion=False)
    return out.cpu()


@pytest.fixture(scope="module")
def fma_of_c(tmp_path_factory: pytest.TempPathFactory) -> Fma:
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("no c++ on the path")
    library = tmp_path_factory.mktemp("fma") / "fma.so"
    source = Path(__file__).parent / "host" / "fma.cpp"
    command = [compiler, "-O2", "-std=c++17", "-shared", "-fPIC", source, "-o", library]
    subprocess.run(command, check=True)
    loop = ctypes.CDLL(str(library)).fma_all

    def call(*operands: Tensor) -> Tensor:
        operands = tuple(x.contiguous() for x in operands)
        out = torch.empty_like(operands[0])
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (*operands, out)]
        loop(*pointers, ctypes.c_int64(len(out)))
        return out

    return call


def assert_fma(fma_of_c: Fma, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    expected, got = fma_of_c(a, b, c), fma_of_the_kernel(a, b, c)
    special = expected.isnan()
    assert torch.equal(got.isnan(), special)
    wrong = (got.view(torch.int32) != expected.view(torch.int32)) & ~special
    assert not wrong.any(), [float(x[wrong][0]).hex() for x in (a, b, c, got, expected)]
    return expected


@pytest.mark.filterwarnings("ignore:(invalid|overflow):RuntimeWarning")
def test_fma_is_that_of_c_on_every_row_of_the_table(fma_of_c: Fma) -> None:
    """All four of an element: three of `normal`, then the term's."""
    generator = torch.Generator().manual_seed(0)
    words = torch.rand(62, 2048, generator=generator, dtype=torch.float64)
    words[:, 0], words[:, -1] = 0, 1 - 2.0**-53
    octave, half = torch.arange(62) // 2, torch.arange(62) % 2
    low, width = 2.0**octave * (1 + 0.5 * half), 2.0**octave * 0.5
    words = (low.double()[:, None] + width[:, None] * words).long() | 1
    f = torch.cat([words, -words]).flatten().float()
    rows = f.view(torch.int32) >> (23 - noise_table.SEGMENT_BITS) & 0x3FF
    table = signed_table(torch.device("cpu")).view(torch.float32)
    assert len(rows.unique()) == 2 * 61  # odd integers leave out [1.5, 3) and round to 2**31
    c0, c1, c2, c3 = table[rows].unbind(1)
    z = assert_fma(fma_of_c, c3, f, c2)
    z = assert_fma(fma_of_c, z, f, c1)
    z = assert_fma(fma_of_c, z, f, c0)
    assert 6.2 < z.abs().max() < 6.4
    for coeff, scale in ((1e-3, 0.02), (1e-9, 0.02), (0.7, 1e-6), (1.0, 1.0)):
        theta = scale * torch.randn(len(z), generator=generator)
        assert_fma(fma_of_c, torch.full_like(z, coeff), z, theta)
        assert_fma(fma_of_c, torch.full_like(z, coeff), z, theta.bfloat16().float())


@pytest.mark.filterwarnings("ignore:(invalid|overflow):RuntimeWarning")
def test_fma_is_that_of_c_on_hard_triples(fma_of_c: Fma) -> None:
    generator = torch.Generator().manual_seed(1)
    count = 1 << 18

    def bits(low: int = -(2**31), high: int = 2**31) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator).int()

    def power(low: int, high: int) -> Tensor:
        return torch.exp2(torch.randint(low, high, (count,), generator=generator).double())

    def near(x: Tensor) -> Tensor:
        """Up to two float32 away."""
        return (x.view(torch.int32) + bits(-2, 3)).view(torch.float32)

    # anything at all, infinities and NaN among them
    anything = [bits().view(torch.float32) for _ in range(3)]
    assert_fma(fma_of_c, *anything)
    a, b = (torch.randn(count, generator=generator) for _ in range(2))
    # cancellation: what is left is the product's own error, or a few last bits
    assert_fma(fma_of_c, a, b, near(-(a * b)))
    # a product of about half the last bit of c, a hair off the tie
    c = near(power(-20, 20).float())
    ulp = torch.nextafter(c, torch.tensor(torch.inf)) - c
    sign = 1 - 2 * (bits(0, 2)).float()
    hair = 1 + power(-23, -11).float()
    assert_fma(fma_of_c, hair, sign * ulp / 2 * (2 - hair), c)
    assert_fma(fma_of_c, sign * near(torch.ones(count)), near(ulp / 2), c)
    # subnormal sums and products
    small = bits(0, 1 << 24).view(torch.float32)
    scale = power(-149, -120)
    assert_fma(fma_of_c, a, (b * scale).float(), small)
    assert_fma(fma_of_c, (a * power(-90, -60)).float(), (b * power(-90, -60)).float(), small)
    assert_fma(fma_of_c, (a * 2.0**-70).float(), (b * 2.0**-70).float(), torch.zeros(count))
    # around the largest float32
    large = (a * power(60, 67)).float()
    assert_fma(fma_of_c, large, (b * power(60, 64)).float(), near(torch.full((count,), 3e38)))


def test_it_serves_on_request() -> None:
    code = (
        "import fedspzo_kernels as k; print(k.info()['backends']['triton'].available);"
        f"print(k.noise(9, 1, 2, device='{DEVICE}').tolist())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FEDSPZO_BACKEND": name},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in ("triton", "reference")
    ]
    assert runs[0][0] == "True"
    assert runs[1][0] == "False"
    assert runs[0][1] == runs[1][1]


def test_all_three_forms_are_registered() -> None:
    code = (
        "import torch, fedspzo_kernels as k, fedspzo_kernels.triton as t;"
        f"t.register('{DEVICE.upper()}'); used = [];"
        "t.perturb_kernel = t.rows_kernel = type('Kernel', (), {'__getitem__':"
        " lambda self, grid: lambda *args, **kwargs: used.append(len(args))})();"
        f"x, rows = torch.zeros(2, 4, device='{DEVICE}'), torch.zeros(1, device='{DEVICE}').long();"
        "k.perturb_([x], [1], [2], [1.0]); k.perturb([x], [1], [2], [1.0]);"
        "k.perturb_rows(x, rows, 1, [2], [1.0]); print(len(used))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FEDSPZO_BACKEND": "reference"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["3"]

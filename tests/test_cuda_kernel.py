"""The CUDA kernel, compiled for the host and run there: the same bits as the CPU backend.

256 threads with real barriers are a block (host/kernel.cpp). Out of place the sources and what is
written differ; `Ops.perturb_` has them the same.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_build import VARIANTS
from kernel_backends import same_bits
from test_perturb import DTYPES, TERMS, values
from torch import Tensor

pytestmark = pytest.mark.slow

FLAGS = [
    *("-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"),
    *("-Wall", "-Werror", "-Wno-unknown-pragmas"),
]
# Around the packets (8), runs (16, 32), turns of a block (2048, 4096, 8192) and chunks (16384).
SIZES = (0, 1, 7, 8, 9, 31, 32, 33, 4097, 16383, 16385, 40_001)
OFFSETS = (0, 1, 4093, 2**34 - 5, 2**62 + 6)
# A tile of terms holds 64.
FULL, MANY = ((tuple(range(count)), tuple(0.01 * k for k in range(count))) for count in (64, 70))
NONE: Any = ((), ())  # out of place, a copy
KINDS = [(torch.float32, None), *itertools.product(DTYPES[1:], (None, 11))]
BLOCKS = 3  # so that a block has several chunks
# Of a row: one element, odd ones, one packet, an embedding's; the last ones meet several chunks.
WIDTHS = (1, 3, 8, 576, 1001)
HEIGHT = 9
IDS = (4, 0, 8, -1, 7, 7, HEIGHT, 2**62)  # out of order, one twice, three that are not there


def pointers(tensors: list[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def numbers(values: list[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


class Settings(ctypes.Structure):
    """Of host/kernel.cpp: the terms and the kernel's variant."""

    _fields_ = (
        *(("seeds", ctypes.c_void_p), ("coeffs", ctypes.c_void_p), ("terms", ctypes.c_int64)),
        *(("rounding_seed", ctypes.c_void_p), ("dtype", ctypes.c_int), ("stream", ctypes.c_int)),
        ("blocks", ctypes.c_uint32),
    )

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        seeds: Tensor,
        coeffs: Tensor,
        rounding_seed: Tensor | None,
        stream: int,
    ) -> Settings:
        random = None if rounding_seed is None else rounding_seed.data_ptr()
        terms = seeds.data_ptr(), coeffs.data_ptr(), len(seeds)
        return cls(*terms, random, DTYPES.index(dtype), stream, BLOCKS)


@dataclass(frozen=True)
class Ops:
    """The three ops by a variant of the kernel, for tensors of one dtype."""

    library: ctypes.CDLL

    def perturb_(self, tensors: list[Tensor], *arguments: Any) -> None:
        self.perturb_out(tensors, tensors, *arguments)

    def perturb_out(
        self,
        sources: list[Tensor],
        outs: list[Tensor],
        keys: list[int],
        offsets: list[int],
        *scalars: Any,
    ) -> None:
        settings = Settings.of(sources[0].dtype, *scalars)
        sizes = numbers([tensor.numel() for tensor in sources])
        self._call(
            "perturb_out",
            *(ctypes.c_int64(len(sources)), pointers(sources), pointers(outs), sizes),
            *(numbers(keys), numbers(offsets), ctypes.byref(settings)),
        )

    def perturb_rows(
        self, source: Tensor, rows: Tensor, out: Tensor, key: int, offset: int, *scalars: Any
    ) -> None:
        settings = Settings.of(source.dtype, *scalars)
        self._call(
            "perturb_rows",
            *(ctypes.c_void_p(source.data_ptr()), *map(ctypes.c_int64, source.shape)),
            *(ctypes.c_void_p(rows.data_ptr()), ctypes.c_int64(len(rows))),
            *(ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(key), ctypes.c_int64(offset)),
            ctypes.byref(settings),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        function = self.library[name]
        function.restype = ctypes.c_char_p
        error = function(*arguments)
        assert error is None, error


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ops]:
    """A variant of the kernel as ops."""

    @functools.cache
    def build(variant: str) -> Ops:
        if (compiler := shutil.which("c++")) is None:
            pytest.skip("no c++ on the path")
        library = tmp_path_factory.mktemp("kernel") / "kernel.so"
        source = Path(__file__).parent / "host" / "kernel.cpp"
        subprocess.run([compiler, *FLAGS, *VARIANTS[variant], source, "-o", library], check=True)
        return Ops(ctypes.CDLL(str(library)))

    return build


@pytest.fixture
def kernel(kernels: Callable[[str], Ops]) -> Ops:
    return kernels("default")


def assert_same_bits(got: Tensor, wanted: Tensor) -> None:
    special = wanted.isnan()
    assert torch.equal(got.isnan(), special)
    assert same_bits(got[~special], wanted[~special])


def assert_same(kernel: Ops, tensors: list[Tensor], *arguments: Any) -> None:
    """Out of place and in place, in this order: `tensors` end up perturbed."""
    expected = [tensor.clone() for tensor in tensors]
    torch.ops.fedspzo.perturb_(expected, *arguments)
    before, outs = torch.cat(tensors), [torch.empty_like(tensor) for tensor in tensors]
    kernel.perturb_out(tensors, outs, *arguments)
    assert same_bits(torch.cat(tensors), before)
    assert_same_bits(torch.cat(outs), torch.cat(expected))
    kernel.perturb_(tensors, *arguments)
    assert_same_bits(torch.cat(tensors), torch.cat(expected))


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize(("dtype", "rounding_seed"), KINDS)
def test_bits_equal_the_cpu(
    kernel: Ops, dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    keys = [j * 0x1234567890ABCDE - 2**63 for j in range(len(SIZES))]
    random = None if rounding_seed is None else torch.tensor(rounding_seed)
    before = [values(size, dtype) for size in SIZES]
    few = itertools.product(OFFSETS, TERMS)
    for offset, (seeds, coeffs) in (*few, (4093, FULL), (2**62 + 6, MANY), (3, NONE)):
        tensors = [tensor.clone() for tensor in before]
        offsets = [offset] * len(SIZES)
        terms = torch.tensor(seeds, dtype=torch.int64), torch.tensor(coeffs)
        assert_same(kernel, tensors, keys, offsets, *terms, random, stream)


def assert_same_rows(
    kernel: Ops, source: Tensor, ids: Tensor, out: Tensor, offset: int, *scalars: Any
) -> None:
    before, there = source.clone(), (ids >= 0) & (ids < len(source))
    found = torch.empty(int(there.sum()), source.shape[1], dtype=source.dtype)
    torch.ops.fedspzo.perturb_rows(source, ids[there], found, -7, offset, *scalars)
    expected = torch.full_like(out, torch.nan)
    expected[there] = found
    kernel.perturb_rows(source, ids, out, -7, offset, *scalars)
    assert_same_bits(out, expected)
    assert same_bits(source, before)


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize(("dtype", "rounding_seed"), KINDS)
def test_rows_have_the_bits_of_the_cpu(
    kernel: Ops, dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    random, ids = None if rounding_seed is None else torch.tensor(rounding_seed), torch.tensor(IDS)
    few = itertools.product(WIDTHS, (0, 2**34 - 5), TERMS)
    for width, offset, (seeds, coeffs) in (*few, (576, 3, NONE), (1001, 2**62 + 6, MANY)):
        source = values(HEIGHT * width, dtype).view(HEIGHT, width)
        out = torch.empty(len(ids), width, dtype=dtype)
        terms = torch.tensor(seeds, dtype=torch.int64), torch.tensor(coeffs)
        assert_same_rows(kernel, source, ids, out, offset, *terms, random, stream)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_in_unaligned_memory_and_nothing_outside(kernel: Ops, dtype: torch.dtype) -> None:
    ids, width = torch.tensor((2, -1, 0, 2)), 20_000  # of which a row meets two chunks or three
    for (a, b), (seeds, coeffs) in itertools.product(((8, 8), (3, 3), (0, 1), (5, 8)), TERMS):
        source = values(3 * width + a, dtype)[a:].view(3, width)
        whole = torch.full((4 * width + b + 7,), 2.0, dtype=dtype)
        terms = torch.tensor(seeds), torch.tensor(coeffs)
        out = whole[b:-7].view(4, width)
        assert_same_rows(kernel, source, ids, out, 16_384 - a, *terms, None, 0)
        assert (whole[:b] == 2).all()
        assert (whole[-7:] == 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sources_and_what_is_written_may_be_aligned_apart(kernel: Ops, dtype: torch.dtype) -> None:
    for (a, b), (seeds, coeffs) in itertools.product(((0, 1), (3, 8), (8, 16)), TERMS):
        source, whole = values(40_000, dtype)[a:39_000], torch.full((40_000,), 2.0, dtype=dtype)
        out = whole[b:][: len(source)]
        arguments = [5], [a], torch.tensor(seeds), torch.tensor(coeffs), None, 0
        expected = source.clone()
        torch.ops.fedspzo.perturb_([expected], *arguments)
        kernel.perturb_out([source], [out], *arguments)
        assert_same_bits(out, expected)
        assert (whole[:b] == 2).all()
        assert (whole[b + len(source) :] == 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_memory_and_nothing_outside(kernel: Ops, dtype: torch.dtype) -> None:
    for start, (seeds, coeffs) in itertools.product((1, 3, 8), TERMS):
        whole = torch.full((40_000,), 2.0, dtype=dtype)
        terms = torch.tensor(seeds), torch.tensor(coeffs)
        assert_same(kernel, [whole[start:-7]], [5], [start], *terms, None, 0)
        assert (whole[:start] == 2).all()
        assert (whole[-7:] == 2).all()


@pytest.mark.parametrize("seeds", [[3], [3, 4]])
def test_as_many_tensors_as_a_launch_holds(kernel: Ops, seeds: list[int]) -> None:
    tensors = [torch.zeros(1 + j % 50) for j in range(512)]
    keys, offsets = list(range(512)), [j % 9 for j in range(512)]
    terms = torch.tensor(seeds), torch.tensor([1.0, 0.5][: len(seeds)])
    assert_same(kernel, tensors, keys, offsets, *terms, None, 0)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "default"])
def test_a_variant_has_the_same_bits(kernels: Callable[[str], Ops], variant: str) -> None:
    keys, offsets = list(range(len(SIZES))), [2**62 + 6] * len(SIZES)
    for stream, (seeds, coeffs) in ((0, TERMS[0]), (0, TERMS[1]), (0, MANY), (1, TERMS[1])):
        tensors = [values(size, torch.bfloat16) for size in SIZES]
        terms = torch.tensor(seeds), torch.tensor(coeffs)
        scalars = (*terms, torch.tensor(11), stream)
        assert_same(kernels(variant), tensors, keys, offsets, *scalars)
        source, ids = values(HEIGHT * 1001, torch.bfloat16).view(HEIGHT, 1001), torch.tensor(IDS)
        out = torch.empty(len(ids), 1001, dtype=torch.bfloat16)
        assert_same_rows(kernels(variant), source, ids, out, 2**34 - 5, *scalars)

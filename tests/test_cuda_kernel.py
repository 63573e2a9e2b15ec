"""The CUDA kernel, compiled for the host and run there: the same bits as the CPU backend.

256 threads with real barriers are a block (host/kernel.cpp).
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_build import VARIANTS
from kernel_backends import Op, same_bits
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
KINDS = [(torch.float32, None), *itertools.product(DTYPES[1:], (None, 11))]
BLOCKS = 3  # so that a block has several chunks


def pointers(tensors: list[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def numbers(values: list[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Op]:
    """A variant of the kernel as an op for tensors of one dtype."""

    @functools.cache
    def build(variant: str) -> Op:
        if (compiler := shutil.which("c++")) is None:
            pytest.skip("no c++ on the path")
        library = tmp_path_factory.mktemp("kernel") / "kernel.so"
        source = Path(__file__).parent / "host" / "kernel.cpp"
        subprocess.run([compiler, *FLAGS, *VARIANTS[variant], source, "-o", library], check=True)
        return as_op(ctypes.CDLL(str(library)).perturb)

    return build


@pytest.fixture
def kernel(kernels: Callable[[str], Op]) -> Op:
    return kernels("default")


def as_op(perturb: Any) -> Op:
    perturb.restype = ctypes.c_char_p

    def op(
        tensors: list[Tensor],
        keys: list[int],
        offsets: list[int],
        seeds: Tensor,
        coeffs: Tensor,
        rounding_seed: Tensor | None,
        stream: int,
    ) -> None:
        error = perturb(
            ctypes.c_int64(len(tensors)),
            pointers(tensors),
            numbers([tensor.numel() for tensor in tensors]),
            numbers(keys),
            numbers(offsets),
            ctypes.c_void_p(seeds.data_ptr()),
            ctypes.c_void_p(coeffs.data_ptr()),
            ctypes.c_int64(len(seeds)),
            ctypes.c_void_p(None if rounding_seed is None else rounding_seed.data_ptr()),
            DTYPES.index(tensors[0].dtype),
            stream,
            BLOCKS,
        )
        assert error is None, error

    return op


def assert_same(kernel: Op, tensors: list[Tensor], *arguments: Any) -> None:
    expected = [tensor.clone() for tensor in tensors]
    torch.ops.fedspzo.perturb_(expected, *arguments)
    kernel(tensors, *arguments)
    got, wanted = torch.cat(tensors), torch.cat(expected)
    special = wanted.isnan()
    assert torch.equal(got.isnan(), special)
    assert same_bits(got[~special], wanted[~special])


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize(("dtype", "rounding_seed"), KINDS)
def test_bits_equal_the_cpu(
    kernel: Op, dtype: torch.dtype, rounding_seed: int | None, stream: int
) -> None:
    keys = [j * 0x1234567890ABCDE - 2**63 for j in range(len(SIZES))]
    random = None if rounding_seed is None else torch.tensor(rounding_seed)
    before = [values(size, dtype) for size in SIZES]
    few = itertools.product(OFFSETS, TERMS)
    for offset, (seeds, coeffs) in (*few, (4093, FULL), (2**62 + 6, MANY)):
        tensors = [tensor.clone() for tensor in before]
        offsets = [offset] * len(SIZES)
        terms = torch.tensor(seeds), torch.tensor(coeffs)
        assert_same(kernel, tensors, keys, offsets, *terms, random, stream)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_memory_and_nothing_outside(kernel: Op, dtype: torch.dtype) -> None:
    for start, (seeds, coeffs) in itertools.product((1, 3, 8), TERMS):
        whole = torch.full((40_000,), 2.0, dtype=dtype)
        terms = torch.tensor(seeds), torch.tensor(coeffs)
        assert_same(kernel, [whole[start:-7]], [5], [start], *terms, None, 0)
        assert (whole[:start] == 2).all()
        assert (whole[-7:] == 2).all()


@pytest.mark.parametrize("seeds", [[3], [3, 4]])
def test_as_many_tensors_as_a_launch_holds(kernel: Op, seeds: list[int]) -> None:
    tensors = [torch.zeros(1 + j % 50) for j in range(512)]
    keys, offsets = list(range(512)), [j % 9 for j in range(512)]
    terms = torch.tensor(seeds), torch.tensor([1.0, 0.5][: len(seeds)])
    assert_same(kernel, tensors, keys, offsets, *terms, None, 0)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "default"])
def test_a_variant_has_the_same_bits(kernels: Callable[[str], Op], variant: str) -> None:
    keys, offsets = list(range(len(SIZES))), [2**62 + 6] * len(SIZES)
    for stream, (seeds, coeffs) in ((0, TERMS[0]), (0, TERMS[1]), (0, MANY), (1, TERMS[1])):
        tensors = [values(size, torch.bfloat16) for size in SIZES]
        terms = torch.tensor(seeds), torch.tensor(coeffs)
        assert_same(kernels(variant), tensors, keys, offsets, *terms, torch.tensor(11), stream)

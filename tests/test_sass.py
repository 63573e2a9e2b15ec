"""Speed budgets that hold without a GPU: what the CUDA and Triton kernels compile to."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sass
from sass import DTYPES, VARIANTS, Code, Variant

pytestmark = pytest.mark.slow

Kernels = dict[Variant, Code]


@functools.cache
def cuda(architecture: int = 90) -> Kernels:
    if reason := sass.missing():
        pytest.skip(reason)
    return sass.cuda_kernels(architecture)


@functools.cache
def triton() -> Kernels:
    """For sm_90, in a process of its own: in this one Triton may be interpreted, not compiled."""
    if reason := sass.missing():
        pytest.skip(reason)
    code = "import pickle, sys, sass; pickle.dump(sass.triton_kernels(90), sys.stdout.buffer)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(sass.__file__).parent,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        stdout=subprocess.PIPE,
        check=True,
    )
    kernels: Kernels = pickle.loads(done.stdout)
    return kernels


@pytest.mark.parametrize(
    "kernels", [functools.partial(cuda, 80), cuda, triton], ids=["cuda 80", "cuda 90", "triton 90"]
)
def test_no_spills_no_local_memory_and_16_byte_accesses_of_theta(
    kernels: Callable[[], Kernels],
) -> None:
    assert list(kernels()) == VARIANTS
    for variant, code in kernels().items():
        assert code.stack == code.local == 0, (variant, code)
        assert code.shared <= 16384, (variant, code)
        stores = {opcode: n for opcode, n in code.accesses.items() if opcode.startswith("STG")}
        assert list(stores) == ["STG.E.128"], (variant, code)
        assert code.accesses["LDG.E.128"] == stores["STG.E.128"], (variant, code)


def test_one_term() -> None:
    """Under about 28 instructions an element an H200 is bound by its memory in bfloat16."""
    brain = cuda()[Variant("bfloat16", "normal-v1")].instructions
    assert brain <= 22.5
    assert cuda()[Variant("float16", "normal-v1")].instructions <= 22.5
    assert cuda()[Variant("float32", "normal-v1")].instructions <= brain


def test_replay() -> None:
    for dtype in DTYPES:
        variant = Variant(dtype, "normal-v1", one_term=False)
        assert cuda()[variant].instructions <= 20
        assert triton()[variant].instructions <= 24


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 8), ("float16", 9.5)])
def test_stochastic_rounding(dtype: str, most: float) -> None:
    plain = cuda()[Variant(dtype, "normal-v1")].instructions
    rounding = cuda()[Variant(dtype, "normal-v1", stochastic=True)].instructions
    assert rounding <= plain + most


def test_rademacher() -> None:
    for dtype in DTYPES:
        assert cuda()[Variant(dtype, "rademacher-v1")].instructions <= 8


def test_triton() -> None:
    for dtype in DTYPES:
        assert triton()[Variant(dtype, "normal-v1")].instructions <= 30
        assert triton()[Variant(dtype, "rademacher-v1")].instructions <= 20

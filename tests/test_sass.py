"""Speed budgets of the CUDA kernels that hold without a GPU: what they compile to."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sass


@functools.cache
def compiled(architecture: int) -> list[sass.Kernel]:
    if reason := sass.missing():
        pytest.skip(reason)
    return sass.kernels(architecture)


def one(dtype: str, noise: str, *, one_term: bool = True, stochastic: bool = False) -> sass.Kernel:
    wanted = (dtype, noise, one_term, stochastic)
    (kernel,) = (k for k in compiled(90) if (k.dtype, k.noise, k.one_term, k.stochastic) == wanted)
    return kernel


def test_every_kernel_is_there() -> None:
    assert len(compiled(90)) == 20


@pytest.mark.parametrize("architecture", [80, 90])
def test_no_spills_no_local_memory_and_16_byte_accesses(architecture: int) -> None:
    for kernel in compiled(architecture):
        assert kernel.spills == 0, kernel
        assert kernel.local == 0, kernel
        assert all(opcode.endswith(".128") for opcode in kernel.accesses), kernel
        assert kernel.shared <= 16384, kernel


def test_one_term() -> None:
    """Under about 28 instructions an element an H200 is bound by its memory in bfloat16."""
    brain = one("Bfloat16", "NormalNoise").instructions
    assert brain <= 22.5
    assert one("Float16", "NormalNoise").instructions <= 22.5
    assert one("Float32", "NormalNoise").instructions <= brain


def test_replay() -> None:
    for dtype in ("Float32", "Bfloat16", "Float16"):
        assert one(dtype, "NormalNoise", one_term=False).instructions <= 20


def test_stochastic_rounding() -> None:
    plain = one("Bfloat16", "NormalNoise").instructions
    assert one("Bfloat16", "NormalNoise", stochastic=True).instructions <= plain + 8


def test_rademacher() -> None:
    for dtype in ("Float32", "Bfloat16", "Float16"):
        assert one(dtype, "SignNoise").instructions <= 8


def test_triton() -> None:
    """In a process of its own: here Triton is interpreted, not compiled."""
    if reason := sass.missing():
        pytest.skip(reason)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", "import sass; print(sass.triton_instructions(90, 'bf16'))"],
        cwd=Path(sass.__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) <= 30

"""Speed budgets that hold without a GPU: what the CUDA and Triton kernels compile to."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gpu_build
import numpy as np
import pytest
import sass
from once import once
from sass import DTYPES, VARIANTS, Code, Variant

pytestmark = pytest.mark.slow

Kernels = dict[Variant, Code]
Cuda = Triton = Callable[..., Kernels]
CUDA = list(itertools.product(sass.ARCHITECTURES, ("whole", "rows")))
TRITON = ("whole", "shifted", "rows")


@pytest.fixture
def cuda(cuda_library: Path) -> Cuda:
    """The kernels of `perturb_` and `perturb_out`, which are the same, or of `perturb_rows`."""
    if reason := sass.missing():
        pytest.skip(reason)

    def kernels(architecture: int = 90, form: str = "whole") -> Kernels:
        return sass.cuda_kernels(cuda_library, architecture, form)

    return kernels


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Triton:
    """For sm_90, in a process of its own: in this one Triton may be interpreted, not compiled."""
    if reason := sass.missing():
        pytest.skip(reason)
    code = """
import pickle, sys, sass
kernels = {
    form: sass.triton_kernels(
        90, form, [v for v in sass.VARIANTS if v.one_term or form == "whole"]
    )
    for form in sys.argv[2:]
}
with open(sys.argv[1], "wb") as file:
    pickle.dump(kernels, file)
"""

    def compile_all(folder: Path) -> None:
        subprocess.run(
            [sys.executable, "-c", code, folder / "kernels", *TRITON],
            cwd=Path(sass.__file__).parent,
            env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
            check=True,
        )

    path = once(tmp_path_factory, "triton", compile_all) / "kernels"
    found: dict[str, Kernels] = pickle.loads(path.read_bytes())

    def kernels(form: str = "whole") -> Kernels:
        return found[form]

    return kernels


@pytest.fixture(
    params=[*CUDA, *TRITON],
    ids=[
        *(f"cuda {number} {form}" for number, form in CUDA),
        *("triton 90", "triton 90 shifted", "triton 90 rows"),
    ],
)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of each language, architecture and form."""
    if isinstance(request.param, str):
        return request.getfixturevalue("triton")(request.param)  # type: ignore[no-any-return]
    return request.getfixturevalue("cuda")(*request.param)  # type: ignore[no-any-return]


def test_no_spills_no_local_memory_and_16_byte_accesses_of_theta(kernels: Kernels) -> None:
    assert list(kernels) in (VARIANTS, [variant for variant in VARIANTS if variant.one_term])
    for variant, code in kernels.items():
        assert code.stack == code.local == 0, (variant, code)
        assert code.shared <= 16384, (variant, code)
        stores = {opcode: n for opcode, n in code.accesses.items() if opcode.startswith("STG")}
        assert list(stores) == ["STG.E.128"], (variant, code)
        assert code.accesses["LDG.E.128"] == stores["STG.E.128"], (variant, code)


@pytest.mark.parametrize("form", ["whole", "rows"])
def test_one_term(cuda: Cuda, form: str) -> None:
    """Under about 28 instructions an element an H200 is bound by its memory in bfloat16."""
    kernels = cuda(form=form)
    brain = kernels[Variant("bfloat16", "normal-v1")].instructions
    assert brain <= 23.25
    assert kernels[Variant("float16", "normal-v1")].instructions <= 23.25
    assert kernels[Variant("float32", "normal-v1")].instructions <= brain


@pytest.mark.parametrize(("form", "most", "one_term"), [("whole", 180, 115), ("rows", 235, 160)])
def test_what_a_chunk_costs_beside_its_loops(
    cuda: Cuda, form: str, most: int, one_term: int
) -> None:
    kernels = cuda(form=form)
    assert kernels[Variant("bfloat16", "normal-v1")].chunk <= one_term
    assert max(code.chunk for code in kernels.values()) <= most


@pytest.mark.parametrize(("architecture", "form"), CUDA)
def test_blocks_of_a_multiprocessor(cuda: Cuda, architecture: int, form: str) -> None:
    least = {(True, False): 6, (True, True): 5, (False, False): 4, (False, True): 4}
    for variant, code in cuda(architecture, form).items():
        if variant.stream == "normal-v1":
            blocks = code.blocks(architecture, sass.THREADS)
            assert blocks >= least[variant.one_term, variant.stochastic], (variant, code)


def test_blocks_are_bounded_by_registers_shared_memory_and_threads() -> None:
    code = Code(0, 0, registers=40, stack=0, local=0, shared=9216, accesses={})
    assert code.blocks(90, 256) == 6
    assert dataclasses.replace(code, registers=32).blocks(90, 256) == 8
    assert dataclasses.replace(code, registers=33).blocks(90, 256) == 6
    assert dataclasses.replace(code, registers=255).blocks(90, 256) == 1
    assert dataclasses.replace(code, shared=60_000).blocks(90, 256) == 3
    assert dataclasses.replace(code, shared=60_000).blocks(80, 256) == 2
    assert dataclasses.replace(code, registers=16, shared=0).blocks(90, 32) == 32


def test_threads_that_read_the_table_do_not_meet_in_a_bank() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no c++ on the path")
    assert sass.wavefronts() == 4
    assert sass.wavefronts(gpu_build.VARIANTS["signed-table"]) == pytest.approx(8.1, abs=0.1)


def test_wavefronts_are_counted_for_eight_threads_at_a_time() -> None:
    lanes = np.arange(32)
    assert sass.count_wavefronts(lanes * 0) == 4  # one row for all
    assert sass.count_wavefronts(lanes * 16) == 4  # each in banks of its own
    assert sass.count_wavefronts(lanes * 32) == 8  # two by two in the same banks
    assert sass.count_wavefronts(lanes * 128) == 32
    assert sass.count_wavefronts(np.where(lanes < 8, lanes * 128, lanes * 16)) == 8 + 3


def test_replay(cuda: Cuda, triton: Triton) -> None:
    for dtype in DTYPES:
        variant = Variant(dtype, "normal-v1", one_term=False)
        assert cuda()[variant].instructions <= 20
        assert cuda(form="rows")[variant].instructions <= 20
        assert triton()[variant].instructions <= 24


@pytest.mark.parametrize(
    ("form", "dtype", "most"),
    [
        *(("whole", "bfloat16", 8), ("whole", "float16", 9.5)),
        *(("rows", "bfloat16", 8), ("rows", "float16", 10)),
    ],
)
def test_stochastic_rounding(cuda: Cuda, form: str, dtype: str, most: float) -> None:
    plain = cuda(form=form)[Variant(dtype, "normal-v1")].instructions
    rounding = cuda(form=form)[Variant(dtype, "normal-v1", stochastic=True)].instructions
    assert rounding <= plain + most


def test_rademacher(cuda: Cuda) -> None:
    for dtype in DTYPES:
        for form in ("whole", "rows"):
            assert cuda(form=form)[Variant(dtype, "rademacher-v1")].instructions <= 8


def test_triton(triton: Triton) -> None:
    for dtype in DTYPES:
        assert triton()[Variant(dtype, "normal-v1")].instructions <= 30
        assert triton()[Variant(dtype, "rademacher-v1")].instructions <= 20
        # an offset that is known to be one of whole vectors costs little
        assert triton("shifted")[Variant(dtype, "normal-v1")].instructions <= 30

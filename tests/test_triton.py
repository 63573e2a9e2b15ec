"""The Triton kernel against the reference, bit for bit: interpreted where there is no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from kernel_backends import REFERENCE, same_bits
from test_perturb import DTYPES, TERMS, values

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from fedspzo_kernels.triton import perturb_, signed_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (0, 1, 33, 4097)
OFFSETS = (0, 3, 2**34 - 5)


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


def test_the_signed_table_has_each_row_twice() -> None:
    table = signed_table(torch.device("cpu")).view(torch.float32)
    used = table.any(1)
    assert int(used.sum()) == 2 * 62  # the octave of 2**31 is zero
    assert torch.equal(table[254:318] * torch.tensor([-1, 1, -1, 1]), table[766:830])


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

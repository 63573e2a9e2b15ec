"""The weight passes of one step: MeZO's form, DeComFL's and ours, side by side.

`pytest benchmarks/test_kernels.py --results FILE.md` also writes the table of ratios.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forms import FORMS, SHAPES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(benchmark: Any, shape: str, dtype: str, threads: int, form: str) -> None:
    benchmark.group = f"{shape}, {dtype}, {threads} thread{'s' * (threads > 1)}"
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in SHAPES[shape]()]
    elements = sum(t.numel() for t in tensors)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        benchmark.pedantic(FORMS[form], (tensors,), rounds=3, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    benchmark.extra_info["elements"] = elements


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_step(benchmark: Any, shape: str, dtype: str, threads: int, form: str) -> None:
    run(benchmark, shape, dtype, threads, form)
    benchmark.extra_info["column"] = form


@pytest.mark.parametrize("capability", ["avx2", "default"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_capability(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, threads: int, capability: str
) -> None:
    monkeypatch.setenv("FEDSPZO_CPU_CAPABILITY", capability)
    run(benchmark, "flat 16M", dtype, threads, "fused")
    benchmark.extra_info["column"] = f"fused, {capability}"

"""Part 7: compute-sanitizer on every kind of launch, at sizes that it can follow.

    python -m gpu.sanitizer memcheck|racecheck

`--launch` is what compute-sanitizer runs. Each tensor is an allocation of its own
(PYTORCH_NO_CUDA_MEMORY_CACHING=1), so that an access beside it is an error.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from typing import Any

import torch

import fedspzo_kernels
from fedspzo_kernels import perturb, perturb_, perturb_rows

from . import device
from .bits import DTYPES
from .rows import attempt, record

SIZES = (0, 1, 9, 33, 4097, 20_001)
TERMS = device.sized((1, 3, 70), (1, 3))
SUMMARIES = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: (\d+) hazard",
}
"""What each tool says last, with the number that should be 0."""


def launch() -> None:
    """Launch every variant of the kernel, on aligned and unaligned memory."""
    missing = [] if device.DRY else [-1, 7]  # rows that become NaN on a GPU
    rows = torch.tensor([6, 0, 3, 3, *missing], device=device.DEVICE)
    for dtype, stream, rounding, terms in itertools.product(
        DTYPES.values(), fedspzo_kernels.STREAMS, ("nearest", "stochastic"), TERMS
    ):
        whole = [torch.empty(size, dtype=dtype, device=device.DEVICE) for size in SIZES]
        tensors = [*whole, *(tensor[3:] for tensor in whole[2:])]
        same: dict[str, Any] = {"rounding": rounding, "stream": stream}
        same["rounding_seed"] = 7 if rounding == "stochastic" else None
        sums, offsets = (range(terms), [0.5] * terms), [2**34 - 3] * len(tensors)
        for form in (perturb, perturb_):
            form(tensors, range(len(tensors)), *sums, offsets=offsets, **same)
        for width in (8, 1001):
            table = torch.empty(7, width, dtype=dtype, device=device.DEVICE)
            perturb_rows(table, rows, 1, *sums, offset=2**34 - 3, **same)
        device.synchronize()


def found(tool: str, output: str) -> int:
    """Read how many errors or hazards a tool found.

    Raises:
        RuntimeError: the tool did not come to its summary.
    """
    summary = re.search(SUMMARIES[tool], output)
    if summary is None:
        raise RuntimeError(f"{tool} gave no summary: {output[-1500:]}")
    return int(summary[1])


def main() -> None:
    tool = sys.argv[1]
    if tool == "--launch":
        launch()
        print("launched all")
        return
    with attempt(tool):
        command = ["compute-sanitizer", "--tool", tool]
        if tool == "memcheck":  # calls that fail are none: torch asks so what a device can do
            command += ["--report-api-errors", "no"]
        command += [sys.executable, "-m", "gpu.sanitizer", "--launch"]
        run = subprocess.run(
            command,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(run.stdout[-20_000:], flush=True)
        if "launched all" not in run.stdout:
            raise RuntimeError(f"{tool}: the launches did not end: {run.stdout[-1500:]}")
        record(tool, errors=found(tool, run.stdout))


if __name__ == "__main__":
    main()

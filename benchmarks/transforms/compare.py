"""Candidate transforms for normal-v1: error of the law, size of the table, instructions on a GPU.

`python benchmarks/transforms/compare.py` prints the table of docs/noise.md. The instruction counts
need nvcc and the cuobjdump that triton carries; without them the column says so.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.polynomial import chebyshev, legendre
from scipy.special import ndtr, ndtri

HERE = Path(__file__).parent
CANDIDATES = {
    "lines_64": (1, 64),
    "signed_lines_64": (1, 64),
    "cubics_1": (3, 1),
    "cubics_2": (3, 2),
    "cubics_4": (3, 4),
    "quartics_2": (4, 2),
    "quintics_1": (5, 1),
}


def law(degree: int, segments: int) -> tuple[float, float, float]:
    """Largest error of the distribution function, then those of the variance and the kurtosis."""
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    fine, (x, weights) = np.linspace(-1, 1, 400), legendre.leggauss(40)
    worst, second, fourth = 0.0, 0.0, 0.0
    for octave in range(31):
        for segment in range(segments):
            low = 2.0**octave * (1 + segment / segments)
            half = 2.0**octave / segments / 2

            def tail(u: np.ndarray, start: float = low, half: float = half) -> np.ndarray:
                return (start + half * (1 + u)) / 2**32

            fit = chebyshev.chebfit(nodes, -ndtri(tail(nodes)), degree)
            error = ndtr(-chebyshev.chebval(fine, fit)) - tail(fine)
            worst = max(worst, float(np.abs(error).max()))
            z, mass = chebyshev.chebval(x, fit), 2 * half / 2**32 * weights
            second += float((mass * z**2).sum())
            fourth += float((mass * z**4).sum())
    return worst, second - 1, fourth - 3


def instructions() -> dict[str, float]:
    """SASS instructions an element in the loop of transforms.cu, for sm_90."""
    spec = importlib.util.find_spec("triton")
    nvcc = shutil.which("nvcc")
    if nvcc is None or spec is None or spec.origin is None:
        return {}
    cuobjdump = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "transforms.cubin"
        flags = ["-arch=sm_90", "-O3", "-fmad=false", "-cubin", "-o", cubin]
        subprocess.run([nvcc, *flags, HERE / "transforms.cu"], check=True)
        run = subprocess.run(
            [cuobjdump, "-sass", cubin], check=True, capture_output=True, text=True
        )
    counts = {}
    for function in run.stdout.split("Function : ")[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", function)
        at = {int(address, 16): number for number, (address, _) in enumerate(lines)}
        loops = [
            number - at[int(target[1], 16)] + 1
            for number, (_, text) in enumerate(lines)
            if (target := re.search(r"\bBRA\b.*0x([0-9a-f]+)", text))
            and at.get(int(target[1], 16), number) < number
        ]
        counts[function.split()[0]] = max(loops) / 8
    return counts


def main() -> None:
    counts = instructions()
    print("| transform | rows | bytes | CDF error | variance - 1 | kurtosis - 3 | instructions |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (degree, segments) in CANDIDATES.items():
        error, variance, kurtosis = law(degree, segments)
        rows = 31 * segments
        cells = [name, rows, rows * 4 * (degree + 1)]
        cells += [f"{value:.1e}" for value in (error, variance, kurtosis)]
        cells.append(f"{counts[name]:.1f}" if name in counts else "not measured")
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()

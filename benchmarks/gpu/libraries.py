"""The compiled backends that the parts run with: built, found, and put where Python finds them.

    python -m gpu.libraries DIR

builds DIR/_C.abi3.so, for the CPU, and DIR/<variant>/_C_cuda.abi3.so for sm_90, each form of the
CUDA library that `gpu_build.VARIANTS` has. No GPU is needed. The libraries are of torch's stable
ABI: they load under every torch from 2.10 on, with any Python from 3.11 on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CPU, CUDA = "_C.abi3.so", "_C_cuda.abi3.so"


def build(folder: Path, seconds: float | None = None) -> None:
    """Build all libraries into a folder.

    Args:
        folder: is made where it is missing.
        seconds: after which each of the two steps is ended.

    Raises:
        subprocess.SubprocessError: a compiler fails or takes too long. Its output is shown.
        FileNotFoundError: the CPU backend was not built; the output says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = str(min(4, len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory() as temporary:
        # without pyproject.toml, whose licence field older setuptools refuse
        tree, built = Path(temporary) / "tree", Path(temporary) / "built"
        shutil.copytree(ROOT / "csrc", tree / "csrc")
        shutil.copy(ROOT / "setup.py", tree)
        command = [sys.executable, "setup.py", "-q", "build_ext"]
        subprocess.run(
            [*command, "--build-lib", built, "--build-temp", Path(temporary) / "objects"],
            cwd=tree,
            env={**os.environ, "FORCE_CUDA": "0"},
            check=True,
            timeout=seconds,
        )
        (library,) = (built / "fedspzo_kernels").glob("_C.*so") or [built / CPU]
        shutil.copy(library, folder / CPU)
    subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu_build.py", folder, "--jobs", jobs],
        check=True,
        timeout=seconds,
    )


def variants(folder: Path) -> list[str]:
    """The names of the forms of the CUDA library in a folder, "default" first."""
    names = sorted(path.parent.name for path in folder.glob(f"*/{CUDA}"))
    return sorted(names, key=lambda name: name != "default")


def stage(folder: Path, variant: str, into: Path) -> Path:
    """Copy the kernels' package with one form's libraries in it.

    Args:
        folder: with the libraries, as `build` leaves them; without a CUDA library of the variant,
            the copy has none.
        variant: the form's name.
        into: an empty folder; each variant gets a folder there.

    Returns:
        What has to come first on PYTHONPATH.
    """
    place = into / variant
    package = place / "fedspzo_kernels"
    shutil.copytree(
        ROOT / "fedspzo_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for library in (folder / CPU, folder / variant / CUDA):
        if library.exists():
            shutil.copy(library, package)
    return place


if __name__ == "__main__":
    build(Path(sys.argv[1]))

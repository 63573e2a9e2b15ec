"""Build the CUDA backend's library in each form that only a GPU can decide between.

    python benchmarks/gpu_build.py DIR [--jobs 2] [--architectures "90"] [VARIANT ...]

writes DIR/<variant>/_C_cuda.abi3.so. It needs nvcc, but no GPU. A library serves once it is copied
into fedspzo_kernels/, under every torch from 2.10 on.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = "_C_cuda.abi3.so"
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "signed-table": ("-DFEDSPZO_SIGNED_TABLE",),
    "more-blocks": (
        *("-DFEDSPZO_ONE_TERM_BLOCKS=8", "-DFEDSPZO_TERM_BLOCKS=5", "-DFEDSPZO_TERM_PACKETS=1"),
    ),
    "fewer-blocks": ("-DFEDSPZO_TERM_BLOCKS=3",),
    "long-chunks": ("-DFEDSPZO_CHUNK_SIZE=65536",),
}
"""Flags of nvcc by the variant's name; csrc/cuda says what the macros do.

`default` is what setup.py builds. Kernels for one term and those for several are decided apart:
`more-blocks` changes both, `fewer-blocks` those for several.
"""


def build(folder: Path, variants: Sequence[str] = tuple(VARIANTS), jobs: int = 1) -> list[Path]:
    """Build the variants' libraries for CUDA_ARCHITECTURES, `jobs` of them at a time.

    Returns:
        The libraries' paths, `folder`/<variant>/_C_cuda.abi3.so.

    Raises:
        RuntimeError: there is no nvcc, or it fails; its output is in the message.
    """
    setup = runpy.run_path(str(ROOT / "setup.py"))
    os.environ["FORCE_CUDA"] = "1"
    nvcc = setup["find_nvcc"]()
    if nvcc is None:
        raise RuntimeError("no nvcc on the path: install the CUDA toolkit, or set NVCC")

    def compile_one(variant: str) -> Path:
        target = (folder / variant / LIBRARY).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        command = setup["cuda_command"](nvcc, target, *VARIANTS[variant])
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise RuntimeError(f"variant {variant}: nvcc fails: {run.stderr}")
        return target

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_one, variants))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("variants", nargs="*", default=[], help="default: all of them")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default: 2)")
    parser.add_argument("--architectures", default="90", help='e.g. "80 90" (default: 90)')
    arguments = parser.parse_args()
    if unknown := set(arguments.variants) - set(VARIANTS):
        parser.error(f"no variant {', '.join(unknown)}: there are {', '.join(VARIANTS)}")
    os.environ["CUDA_ARCHITECTURES"] = arguments.architectures
    try:
        for path in build(arguments.folder, arguments.variants or tuple(VARIANTS), arguments.jobs):
            print(path)
    except RuntimeError as error:
        sys.exit(f"gpu_build: {error}")


if __name__ == "__main__":
    main()

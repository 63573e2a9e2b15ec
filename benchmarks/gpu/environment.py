"""Part 1: which card, backend and versions the other parts have."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import torch

import fedspzo_kernels

from . import device
from .rows import attempt, record

PACKAGES = ("torch", "triton", "transformers", "setuptools", "pytest", "numpy")
TOOLS = {
    "nvcc": ["nvcc", "--version"],
    "ncu": ["ncu", "--version"],
    "compute-sanitizer": ["compute-sanitizer", "--version"],
    "driver": ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"],
}


def versions() -> dict[str, str]:
    """The packages' versions, and the last line that each tool says about itself."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not there"
    for name, command in TOOLS.items():
        found[name] = "not there"
        if shutil.which(command[0]):
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
            found[name] = (run.stdout.strip() or run.stderr.strip()).splitlines()[-1]
    return found


def main() -> None:
    # raises where another backend would serve
    record("serving", device=device.DEVICE, cpu_backend=fedspzo_kernels.serving("cpu"))
    if fedspzo_kernels.serving("cpu") == "reference":
        raise RuntimeError("no compiled backend serves the CPU, to compare bits with in time")
    for name, backend in fedspzo_kernels.info()["backends"].items():
        record(f"backend {name}", available=backend.available, reason=backend.reason)
    with attempt("versions"):
        record("versions", **versions())
    if not device.DRY:
        with attempt("card"):
            card = torch.cuda.get_device_properties(0)
            record(
                "card",
                multiprocessors=card.multi_processor_count,
                memory_bytes=card.total_memory,
                cache_bytes=card.L2_cache_size,
            )


if __name__ == "__main__":
    main()

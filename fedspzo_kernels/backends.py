"""Which backend serves which device, decided once at import, and why another one is not there.

`FEDSPZO_BACKEND=reference|cpu|cuda|triton` asks for one; without it the fastest one there is
serves each device.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import torch

REQUEST = "FEDSPZO_BACKEND"
NAMES = ("reference", "cpu", "cuda", "triton")


@dataclass(frozen=True)
class Backend:
    """A backend's state: `reason` says what it does or why it is not there."""

    available: bool
    reason: str


_backends: dict[str, Backend] = {}


def load() -> None:
    """Load the compiled backends that are there and wanted. Called once, at import."""
    wanted = os.environ.get(REQUEST, "")
    if wanted not in ("", *NAMES):
        raise ValueError(f"{REQUEST} is {wanted!r}; set one of {', '.join(NAMES)}, or unset it")
    _backends["reference"] = Backend(True, "plain torch, any device")
    _backends["cpu"] = _load("_C", "CPU", wanted in ("", "cpu"))
    if torch.version.cuda is None:
        _backends["cuda"] = Backend(False, "this torch has no CUDA")
    else:
        _backends["cuda"] = _load("_C_cuda", "CUDA", wanted in ("", "cuda"))
    _backends["triton"] = _load_triton(wanted)
    if wanted and not _backends[wanted].available:
        raise RuntimeError(
            f"{REQUEST} is {wanted!r}, but that backend is not there:"
            f" {_backends[wanted].reason}; unset it or install the backend"
        )


def _load(stem: str, device: str, wanted: bool) -> Backend:
    paths = sorted(Path(__file__).parent.glob(f"{stem}.*so"))
    if not paths:
        return Backend(False, "not compiled (the build says why)")
    if not wanted:
        return Backend(False, f"{REQUEST}={os.environ[REQUEST]} asks for another one")
    try:
        torch.ops.load_library(paths[0])
    except OSError as error:
        return Backend(False, f"{paths[0].name} does not load: {error}")
    return Backend(True, f"{paths[0].name}, on {device} tensors")


def _load_triton(wanted: str) -> Backend:
    """Triton serves GPUs that the CUDA backend does not; interpreted, CPU tensors on request."""
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "triton is not installed")
    if wanted not in ("", "triton"):
        return Backend(False, f"{REQUEST}={wanted} asks for another one")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not torch.cuda.is_available() and not (interpreted and wanted):
        return Backend(
            False, f"torch finds no GPU ({REQUEST}=triton TRITON_INTERPRET=1 interprets on the CPU)"
        )
    if _backends["cuda"].available:
        return Backend(False, f"the cuda backend serves GPUs ({REQUEST}=triton asks for this one)")
    from . import triton

    device = "CPU" if interpreted else "CUDA"
    torch.library.impl("fedspzo::perturb_", device, triton.perturb_)
    return Backend(True, f"{'interpreted, ' if interpreted else ''}on {device} tensors")


def info() -> dict[str, object]:
    """What there is: backends with reasons, the CPU's instruction set, threads, the GPU.

    Returns:
        A dict with keys `torch`, `backends` (name to `Backend`), `cpu_capability` (None without
        the compiled backend), `threads` and `gpu` (its name, or None).
    """
    compiled = _backends["cpu"].available
    return {
        "torch": torch.__version__,
        "backends": dict(_backends),
        "cpu_capability": torch.ops.fedspzo.cpu_capability() if compiled else None,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }

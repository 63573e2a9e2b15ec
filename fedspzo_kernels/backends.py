"""Loads the backends at import, and decides which of them serves each device.

Each device is served by the fastest backend that is available. `FEDSPZO_BACKEND=cpu|cuda|triton`
asks for one: it serves its device, or the import fails. `FEDSPZO_BACKEND=reference` makes plain
torch serve all devices.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.torch_version import TorchVersion

REQUEST = "FEDSPZO_BACKEND"
OLDEST_TORCH = "2.10"
"""The compiled libraries load in this and later ones (`STABLE_ABI` in setup.py)."""
NAMES = ("reference", "cpu", "cuda", "triton")


@dataclass(frozen=True)
class Backend:
    """The state of a backend.

    Attributes:
        available: True if it can serve tensors.
        reason: its description, or the reason why it is not available.
        device: type of the tensors that it serves, such as "cuda". Default None: those that no
            other backend serves.
    """

    available: bool
    reason: str
    device: str | None = None


_backends: dict[str, Backend] = {}


def load() -> None:
    """Load the backends that are available and wanted. It is called once, at import.

    It issues a RuntimeWarning for a backend that was built but does not load, with the loader's
    message and what to do.

    Raises:
        ValueError: FEDSPZO_BACKEND does not name a backend.
        RuntimeError: the backend that it asks for is not available.
    """
    request = os.environ.get(REQUEST, "")
    if request not in ("", *NAMES):
        raise ValueError(f"{REQUEST} is {request!r}; set one of {', '.join(NAMES)}, or unset it")
    _backends["reference"] = Backend(True, "plain torch, any device")
    _backends["cpu"] = _load_cpu(request)
    _backends["cuda"] = _load_cuda(request)
    _backends["triton"] = _load_triton(request)
    if request and not _backends[request].available:
        raise RuntimeError(
            f"{REQUEST} is {request!r}, but that backend is not there:"
            f" {_backends[request].reason}; unset it or install the backend"
        )


def serving(device: str | torch.device) -> str:
    """Return the name of the backend that serves tensors on a device.

    >>> serving("meta")
    'reference'
    """
    kind = torch.device(device).type
    backends = (name for name, b in _backends.items() if b.available and b.device == kind)
    return next(backends, "reference")


def _load_cpu(request: str) -> Backend:
    if request == "reference" or _interpreted(request):
        return _not_asked_for(request)
    return _load_library("_C", "cpu")


def _load_cuda(request: str) -> Backend:
    if torch.version.cuda is None:
        return Backend(False, "this torch has no CUDA")
    if request in ("reference", "triton"):
        return _not_asked_for(request)
    backend = _load_library("_C_cuda", "cuda")
    if backend.available and not torch.cuda.is_available():
        return Backend(False, "its library loads, but torch finds no GPU")
    return backend


def _load_triton(request: str) -> Backend:
    """Load the Triton backend. It serves GPUs in place of CUDA's, or interprets on the CPU."""
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "triton is not installed")
    if request in ("reference", "cuda"):
        return _not_asked_for(request)
    interpreted = _interpreted(request)
    if not torch.cuda.is_available() and not interpreted:
        return Backend(
            False, f"torch finds no GPU ({REQUEST}=triton TRITON_INTERPRET=1 interprets on the CPU)"
        )
    if _backends["cuda"].available:
        return Backend(False, f"the cuda backend serves GPUs ({REQUEST}=triton asks for this one)")
    try:
        from . import triton
    except ImportError as error:
        return _failed("triton", f"triton is installed, but does not load: {error}")
    device = "cpu" if interpreted else "cuda"
    triton.register(device.upper())
    how = "interpreted, " if interpreted else ""
    return Backend(True, f"{how}on {device.upper()} tensors", device)


def _interpreted(request: str) -> bool:
    """Return True if Triton's interpreter has to serve CPU tensors."""
    return request == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


def _not_asked_for(request: str) -> Backend:
    return Backend(False, f"{REQUEST}={request} asks for another one")


def _load_library(stem: str, device: str) -> Backend:
    paths = sorted(Path(__file__).parent.glob(f"{stem}.*so"))
    if not paths:
        return Backend(False, "not compiled (the build says why)")
    try:
        torch.ops.load_library(paths[0])
    except OSError as error:
        # the error's cause has the dynamic loader's message
        reason = f"{paths[0].name} does not load: {error.__cause__ or error}"
        return _failed(device, reason, _remedy(torch.__version__))
    return Backend(True, f"{paths[0].name}, on {device.upper()} tensors", device)


def _remedy(version: str) -> str:
    """Say what to do about a compiled library that does not load in a torch of that version."""
    if TorchVersion(version) < OLDEST_TORCH:
        return f"it needs torch {OLDEST_TORCH} or later, and this is {version}: upgrade torch"
    return (
        f"it is not for this machine or for torch {version}: compile it here with 'pip install"
        " --no-build-isolation --no-deps --force-reinstall' and fedspzo's source (a folder or a"
        " .tar.gz)"
    )


def _failed(name: str, reason: str, remedy: str = "") -> Backend:
    """Return the state of a backend that did not load, and warn, as another serves in its place."""
    advice = remedy and f"; {remedy}"
    warnings.warn(f"fedspzo: no {name} backend: {reason}{advice}", RuntimeWarning, stacklevel=2)
    return Backend(False, reason)


def info() -> dict[str, object]:
    """Return the state of the backends and the machine.

    Returns:
        A dict with the keys "torch" (its version), "backends" (the `Backend` of each name),
        "cpu_capability" (the CPU backend's instruction set, or None without it), "threads" (their
        number) and "gpu" (its name, or None).
    """
    compiled = _backends["cpu"].available
    return {
        "torch": torch.__version__,
        "backends": dict(_backends),
        "cpu_capability": torch.ops.fedspzo.cpu_capability() if compiled else None,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }

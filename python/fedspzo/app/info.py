"""The command `fedspzo info`: it prints versions, backends with their state, CPU and GPU."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from rich.table import Table

import fedspzo_kernels

from .console import PlainConsole

PACKAGES = ("fedspzo", "torch", "transformers", "tokenizers", "safetensors", "numpy", "rich")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def print_info() -> None:
    """Print the tables to stdout."""
    console = PlainConsole()
    kernels: dict[str, Any] = fedspzo_kernels.info()
    versions = Table("package", "version", title="versions", title_justify="left")
    versions.add_row("Python", platform.python_version())
    for name in PACKAGES:
        versions.add_row(name, _version(name))
    console.print(versions)
    backends = Table("backend", "there", "why", title="backends", title_justify="left")
    for name, backend in kernels["backends"].items():
        backends.add_row(name, "yes" if backend.available else "no", backend.reason)
    console.print(backends)
    machine = Table("device", "", title="machine", title_justify="left")
    machine.add_row("CPU", platform.processor() or platform.machine())
    machine.add_row("CPU served by", f"{fedspzo_kernels.serving('cpu')} backend")
    machine.add_row("CPU capability", str(kernels["cpu_capability"] or "unknown: not compiled"))
    machine.add_row("threads", str(kernels["threads"]))
    machine.add_row("GPU", str(kernels["gpu"] or "none that torch can use"))
    if kernels["gpu"]:
        machine.add_row("GPU served by", f"{fedspzo_kernels.serving('cuda')} backend")
    console.print(machine)

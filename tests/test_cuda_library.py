"""The CUDA backend's library, built here: torch's libraries have what it needs, and it loads.

No GPU is needed, nor a torch with CUDA. nvcc is: without it these tests are skipped, and say so.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from forked_python import ForkedPython

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Only a torch with CUDA has these, in libtorch_cuda.
CUDA_ONLY = {"aoti_torch_get_current_cuda_stream"}
# Symbols that a compiler leaves open in every library, for loaders and profilers that have them.
TOOLCHAIN = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(library: Path, *flags: str) -> dict[str, str]:
    """The kinds of a library's dynamic symbols by their names: U undefined, w weak, ..."""
    lines = run("nm", "-D", *flags, library).splitlines()
    return {line.split()[-1].split("@")[0]: line.split()[-2] for line in lines if line}


def needed(library: Path) -> list[Path]:
    """The libraries that the loader is told to search: torch's, and the system's."""
    dynamic = run("readelf", "-d", library).splitlines()
    names = [line.split("[")[1].rstrip("]") for line in dynamic if "(NEEDED)" in line]
    system = {}
    for line in run("ldd", library).splitlines():
        name, *rest = line.split()
        path = rest[1] if rest[0] == "=>" else name  # the loader itself stands alone
        system[Path(name).name] = Path(path)
    torchs = Path(torch.__file__).parent / "lib"
    return [torchs / name if (torchs / name).exists() else system[name] for name in names]


def test_what_it_needs_is_in_the_libraries_that_it_names(cuda_library: Path) -> None:
    libraries = needed(cuda_library)
    assert {"libtorch.so", "libtorch_cpu.so", "libc10.so"} <= {path.name for path in libraries}
    exported = set().union(*(symbols(path, "--defined-only") for path in libraries))
    wanted = symbols(cuda_library, "--undefined-only")
    assert {name for name, kind in wanted.items() if kind == "U"} <= exported
    assert wanted.keys() - exported - TOOLCHAIN == CUDA_ONLY


@pytest.mark.parametrize("op", ["perturb_", "perturb_out", "perturb_rows"])
def test_it_loads_and_registers_the_ops_for_cuda(
    python: ForkedPython, cuda_library: Path, op: str
) -> None:
    code = f"""
import torch, fedspzo_kernels
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
before = has_kernel("fedspzo::{op}", "CUDA")
torch.ops.load_library({str(cuda_library)!r})
print(before, has_kernel("fedspzo::{op}", "CUDA"))
"""
    done = python("-c", code, FEDSPZO_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]


def test_a_request_without_a_gpu_is_refused(
    python: ForkedPython, cuda_library: Path, tmp_path: Path
) -> None:
    package = tmp_path / "fedspzo_kernels"
    shutil.copytree(ROOT / "fedspzo_kernels", package, ignore=shutil.ignore_patterns("_C_cuda*"))
    shutil.copy(cuda_library, package)
    code = """
import torch
torch.version.cuda = "13.0"
import fedspzo_kernels as kernels
print(kernels.serving("cuda"), kernels.info()["backends"]["cuda"].reason)
"""
    done = python("-c", code, folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    state = "its library loads, but torch finds no GPU"
    assert done.stdout.strip() == f"reference {state}"
    done = python("-c", code, folder=tmp_path, CUDA_VISIBLE_DEVICES="", FEDSPZO_BACKEND="cuda")
    assert done.returncode != 0
    assert f"FEDSPZO_BACKEND is 'cuda', but that backend is not there: {state}" in done.stderr

"""Which backend serves: what the environment asks for, what is missing, no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked_python import ForkedPython

import fedspzo_kernels

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SHOW = """
import fedspzo_kernels
info = fedspzo_kernels.info()
print({name: b.available for name, b in info["backends"].items()}, info["cpu_capability"])
print(fedspzo_kernels.noise(5, key=1, seed=2).tolist())
"""


def needs_cpu_backend() -> None:
    cpu = fedspzo_kernels.info()["backends"]["cpu"]
    if not cpu.available:
        pytest.skip(f"no compiled CPU backend: {cpu.reason}")


def test_a_requested_backend_serves_and_gives_the_same_noise(python: ForkedPython) -> None:
    needs_cpu_backend()
    reference, cpu = (python("-c", SHOW, FEDSPZO_BACKEND=name) for name in ("reference", "cpu"))
    assert "'cpu': False" in reference.stdout
    assert "'cpu': True" in cpu.stdout
    assert reference.stdout.splitlines()[1] == cpu.stdout.splitlines()[1]


@pytest.mark.parametrize("name", ["default", "avx2"])
def test_a_requested_capability_serves(python: ForkedPython, name: str) -> None:
    needs_cpu_backend()
    done = python("-c", SHOW, FEDSPZO_CPU_CAPABILITY=name)
    if "this machine or build lacks" in done.stderr:
        pytest.skip(f"no {name} here")
    assert done.stdout.splitlines()[0].endswith(name)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FEDSPZO_BACKEND": "gpu"}, "FEDSPZO_BACKEND is 'gpu'; set one of reference, cpu, cuda"),
        ({"FEDSPZO_BACKEND": "cuda"}, "FEDSPZO_BACKEND is 'cuda', but that backend is not there"),
    ],
)
def test_a_backend_that_is_not_there_is_refused(
    python: ForkedPython, environment: dict[str, str], message: str
) -> None:
    done = python("-c", SHOW, **environment)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with the package, whose compiled libraries do not load."""
    package = tmp_path / "fedspzo_kernels"
    shutil.copytree(ROOT / "fedspzo_kernels", package, ignore=shutil.ignore_patterns("*.so"))
    for stem in ("_C", "_C_cuda"):
        (package / f"{stem}.abi3.so").write_text(
            "not a library, but a text that is long enough\n" * 9
        )
    return tmp_path


WITH_CUDA = "import torch; torch.version.cuda = '13.0'\n"
SERVING = """
import fedspzo_kernels as kernels
print([kernels.serving(device) for device in ("cpu", "cuda", "meta")])
print([kernels.info()["backends"][name].reason for name in ("cpu", "cuda")])
"""


def test_a_library_that_does_not_load_is_a_warning_with_the_loaders_words(
    python: ForkedPython, broken: Path
) -> None:
    done = python("-c", WITH_CUDA + SERVING, folder=broken, CUDA_VISIBLE_DEVICES="")
    serving, reasons = done.stdout.splitlines()
    assert serving == "['reference', 'reference', 'reference']"
    for name, stem in (("cpu", "_C"), ("cuda", "_C_cuda")):
        reason = rf"{stem}\.abi3\.so does not load: .*{stem}\.abi3\.so: invalid ELF header"
        assert re.search(rf"RuntimeWarning: fedspzo: no {name} backend: {reason}", done.stderr)
        assert re.search(reason, reasons)


def test_another_torch_that_lacks_a_function_is_one_line_with_the_remedy(
    python: ForkedPython, tmp_path: Path
) -> None:
    """A function's name in the library is changed to one that no torch has."""
    needs_cpu_backend()
    shutil.copytree(ROOT / "fedspzo_kernels", tmp_path / "fedspzo_kernels")
    (library,) = tmp_path.glob("fedspzo_kernels/_C.*so")
    library.write_bytes(library.read_bytes().replace(b"torch_parallel_for", b"torch_parallel_xxx"))
    for version, remedy in (
        ("2.9.1", "it needs torch 2.10 or later, and this is 2.9.1: upgrade torch"),
        (torch.__version__, f"or for torch {torch.__version__}: compile it here with 'pip install"),
    ):
        older = f"import torch; torch.__version__ = {str(version)!r}\n"
        done = python("-c", older + SERVING, folder=tmp_path)
        assert done.stdout.startswith("['reference', 'reference', 'reference']")
        (warning,) = (line for line in done.stderr.splitlines() if "RuntimeWarning" in line)
        assert "undefined symbol: torch_parallel_xxx; it " in warning
        assert remedy in warning


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_request_for_a_library_that_does_not_load_is_refused(
    python: ForkedPython, broken: Path, name: str
) -> None:
    done = python("-c", WITH_CUDA + SERVING, folder=broken, FEDSPZO_BACKEND=name)
    assert done.returncode != 0
    refusal = f"RuntimeError: FEDSPZO_BACKEND is '{name}', but that backend is not there: _C"
    assert refusal in done.stderr
    assert "invalid ELF header; unset it" in done.stderr


def test_serving_names_the_backend_that_the_dispatcher_calls() -> None:
    for device, key in (("cpu", "CPU"), ("cuda", "CUDA")):
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key("fedspzo::perturb_", key)
        assert (fedspzo_kernels.serving(device) != "reference") == has_kernel
    assert fedspzo_kernels.serving(torch.device("meta")) == "reference"


def test_an_unknown_capability_is_refused(python: ForkedPython) -> None:
    needs_cpu_backend()
    done = python("-c", SHOW, FEDSPZO_CPU_CAPABILITY="sse9")
    assert done.returncode != 0
    assert "FEDSPZO_CPU_CAPABILITY is 'sse9'" in done.stderr
    assert "set avx512, avx2 or default" in done.stderr


def test_the_install_survives_a_missing_compiler(python: ForkedPython, tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "fedspzo_kernels", "python"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
    build = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "CXX": "no-such-compiler", "CC": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    assert "fedspzo_kernels._C was not built" in build.stdout
    assert not list(tmp_path.glob("fedspzo_kernels/*.so"))
    done = python("-c", SHOW, folder=tmp_path)
    assert "'reference': True, 'cpu': False" in done.stdout

"""Which backend serves: what the environment asks for, what is missing, no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedspzo_kernels

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SHOW = """
import fedspzo_kernels
info = fedspzo_kernels.info()
print({name: b.available for name, b in info["backends"].items()}, info["cpu_capability"])
print(fedspzo_kernels.noise(5, key=1, seed=2).tolist())
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def needs_cpu_backend() -> None:
    cpu = fedspzo_kernels.info()["backends"]["cpu"]
    if not cpu.available:
        pytest.skip(f"no compiled CPU backend: {cpu.reason}")


def test_a_requested_backend_serves_and_gives_the_same_noise() -> None:
    needs_cpu_backend()
    reference, cpu = (python(SHOW, FEDSPZO_BACKEND=name) for name in ("reference", "cpu"))
    assert "'cpu': False" in reference.stdout
    assert "'cpu': True" in cpu.stdout
    assert reference.stdout.splitlines()[1] == cpu.stdout.splitlines()[1]


@pytest.mark.parametrize("name", ["default", "avx2"])
def test_a_requested_capability_serves(name: str) -> None:
    needs_cpu_backend()
    done = python(SHOW, FEDSPZO_CPU_CAPABILITY=name)
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
def test_a_backend_that_is_not_there_is_refused(environment: dict[str, str], message: str) -> None:
    done = python(SHOW, **environment)
    assert done.returncode != 0
    assert message in done.stderr


def test_an_unknown_capability_is_refused() -> None:
    needs_cpu_backend()
    done = python(SHOW, FEDSPZO_CPU_CAPABILITY="sse9")
    assert done.returncode != 0
    assert "FEDSPZO_CPU_CAPABILITY is 'sse9'" in done.stderr
    assert "set avx512, avx2 or default" in done.stderr


def test_the_install_survives_a_missing_compiler(tmp_path: Path) -> None:
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
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "'reference': True, 'cpu': False" in done.stdout

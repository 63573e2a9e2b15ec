"""What `make wheel` has built: it installs and trains where no compiler is.

The environment is empty but for torch and the other requirements, which it sees through a .pth file
so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parent.parent
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "clang++", "nvcc", "ninja", "make")
# What a library may take from torch without being tied to a release of it, and what compilers leave
# open in every library.
STABLE = re.compile(r"(aoti_torch|torch)_[a-z0-9_]+|_ITM_\w+|__gmon_start__")


def built(pattern: str) -> Path:
    found = sorted(ROOT.glob(f"dist/{pattern}"))
    assert len(found) == 1, f"dist/ has {[p.name for p in found]} for {pattern}: run 'make wheel'"
    return found[0]


class Environment:
    """A virtual environment with the wheel in it, and no compiler on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "env/bin"
        venv.create(folder / "env", with_pip=False, symlinks=True)
        (self.packages,) = folder.glob("env/lib/python*/site-packages")
        # a folder named in a .pth file is searched, but the .pth files in it are not read: an
        # editable install of fedspzo there stays out of sight
        (self.packages / "requirements.pth").write_text(sysconfig.get_paths()["purelib"])

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={
                "PATH": str(self.bin),
                "HOME": str(self.folder),
                "OMP_NUM_THREADS": "1",
                **dict.fromkeys(("CC", "CXX", "NVCC"), "false"),
            },
            check=check,
            capture_output=True,
            text=True,
        )

    def python(self, code: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.bin / "python"), "-c", code, check=check)

    def install(self, wheel: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install")
        self.run(*pip, "--no-index", "--no-deps", "--quiet", str(wheel))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("wheel"))
    before = made.python("import torch, fedspzo", check=False)
    assert "No module named 'fedspzo'" in before.stderr
    made.install(built("*.whl"))
    return made


def test_the_tag_is_of_every_python_from_3_11_and_of_a_linux_of_some_years() -> None:
    name = built("*.whl").name
    assert re.fullmatch(r"fedspzo-[\d.]+-cp311-abi3-manylinux_2_(\d+)_\w+\.whl", name), name
    names = zipfile.ZipFile(built("*.whl")).namelist()
    assert "fedspzo_kernels/_C.abi3.so" in names
    assert [n for n in names if re.search(r"libtorch|libc10|\.libs/|(^|/)tests?/", n)] == []


def test_the_library_takes_from_torch_what_its_stable_interface_has(tmp_path: Path) -> None:
    """No symbol of Python, none of torch's C++, and the C++ library's with their versions.

    A symbol without a version is found in whichever library has it, and auditwheel's tag does not
    count it.
    """
    library = zipfile.ZipFile(built("*.whl")).extract("fedspzo_kernels/_C.abi3.so", tmp_path)
    listing = subprocess.run(
        ["nm", "-D", "-u", library], check=True, capture_output=True, text=True
    )
    names = [line.split()[-1] for line in listing.stdout.splitlines()]
    assert "torch_library_impl" in names
    assert [n for n in names if "@" not in n and not STABLE.fullmatch(n)] == []


def test_the_wheels_files_serve_without_a_compiler(environment: Environment) -> None:
    found = environment.python(
        "import shutil, fedspzo, fedspzo_kernels as kernels\n"
        f"print([name for name in {COMPILERS} if shutil.which(name)])\n"
        "print(fedspzo.__file__, kernels.__file__)\n"
        "print(kernels.serving('cpu'), kernels.info()['backends']['cpu'].reason)"
    ).stdout.splitlines()
    assert found[0] == "[]"
    assert all(Path(p).is_relative_to(environment.packages) for p in found[1].split())
    assert found[2] == "cpu _C.abi3.so, on CPU tensors"


def test_the_demo_runs_there_to_the_same_bits_as_here(environment: Environment) -> None:
    arguments = ("demo", "--rounds", "3", "--quiet", "--output")
    environment.run(str(environment.bin / "fedspzo"), *arguments, "there")
    here = environment.folder / "here"
    subprocess.run(
        [sys.executable, "-m", "fedspzo", *arguments, str(here)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    digests = [
        json.loads((environment.folder / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("there", "here")
    ]
    assert digests[0]["rounds"] == 3
    assert digests[0]["digest"] == digests[1]["digest"]


def test_the_source_distribution_has_all_that_its_wheel_was_built_from() -> None:
    """`python -m build` makes the wheel from the source distribution, not from this folder."""
    with tarfile.open(built("*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "csrc/noise.h", "csrc/cuda/perturb.cu", "LICENSE", "README.md"} <= names
    assert {name for name in names if name.startswith(("tests", "docs", "dist"))} == set()

from __future__ import annotations

import gc
import os

# Read when torch is first imported. Threads of several test processes would wait for each other;
# a test of thread counts sets its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
from forked_python import ForkedPython
from fuzz_toml import write_named_files
from kernel_backends import CAPABILITIES, REFERENCE, Op, compiled, why_not
from once import once

import fedspzo_kernels
from fedspzo.app import figure

PAINTED = figure._painted


def pytest_collection_finish() -> None:
    """Leave what was imported out of the collections of garbage to come: each takes 0.2 s of it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries say at the end that their objects leaked


def pytest_report_header() -> str:
    """What every result of this run was made by."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return "fedspzo: " + ", ".join(f"{d} by {fedspzo_kernels.serving(d)}" for d in devices)


@pytest.fixture(params=CAPABILITIES)
def fast(request: pytest.FixtureRequest) -> Op:
    """Each compiled implementation of the op."""
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    return compiled(request.param)


@pytest.fixture(params=["reference", *CAPABILITIES])
def backend(request: pytest.FixtureRequest) -> Op:
    """Each implementation of the op, the reference among them."""
    if request.param == "reference":
        return REFERENCE
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    return compiled(request.param)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the fuzz tests of a module, with the files that their config names."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_named_files(folder)
    return folder


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `FORCE_CUDA=1 python setup.py build_ext` builds, for the architectures of budgets."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on the path: nothing here shows what the CUDA library is like")

    def build(folder: Path) -> None:
        root = Path(__file__).parent.parent
        package = folder / "lib/fedspzo_kernels"
        package.mkdir(parents=True, exist_ok=True)
        for built in (root / "fedspzo_kernels").glob("_C.*so"):
            shutil.copy(built, package)  # the CPU backend's, which is not built again then
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder / "lib"]
        subprocess.run(
            [*command, "--build-temp", folder / "temp"],
            cwd=root,
            env={**os.environ, "FORCE_CUDA": "1", "CUDA_ARCHITECTURES": "80 90"},
            check=True,
        )

    return once(tmp_path_factory, "cuda", build) / "lib/fedspzo_kernels/_C_cuda.abi3.so"


@pytest.fixture(scope="session")
def python() -> Iterator[ForkedPython]:
    """Runs Python programs without their importing torch anew."""
    made = ForkedPython()
    yield made
    made.end()


@pytest.fixture(autouse=True, scope="session")
def _unpainted() -> Iterator[None]:
    """A run's figure is made and not painted, which would be half of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "_painted", lambda _: b"not painted")
        yield


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs paint their figures."""
    monkeypatch.setattr(figure, "_painted", PAINTED)


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal, also where a shell in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: a toy model on several waits for its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_compiled() -> None:
    """As in a new process; other tests may have compiled a model in this one."""
    import torch._dynamo

    torch._dynamo.utils.counters.clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in `done`, and in `stopped` the same that was stopped."""
    from resume_toys import write_runs  # needs transformers

    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder `runs`, entered, with the stopped run in `out`."""
    from resume_toys import stopped_run

    monkeypatch.chdir(runs)
    with stopped_run():
        yield runs

"""The GPU suite without a GPU: all of its code runs, and no part takes another one's rows along."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import libraries, rows
from gpu.goals import GOALS
from gpu.parts import Part, parts
from gpu.suite import Suite, checked
from test_backends import needs_cpu_backend

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def cells(path: Path, goal: str) -> list[list[str]]:
    """The lines of a report's table that are of one goal."""
    lines = (line.strip("| ").split(" | ") for line in path.read_text().splitlines())
    return [line for line in lines if line[0] == goal]


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole dry run."""
    needs_cpu_backend()
    out = tmp_path_factory.mktemp("dry")
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu_suite.sh"), "--dry", str(out)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    log = (out / "suite.log").read_text() if (out / "suite.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log[-5000:]
    return out


def test_a_dry_run_leaves_rows_of_every_part(dry: Path) -> None:
    found = rows.read(dry / "rows.jsonl")
    ends = [row for row in found if row["what"] == "end of part"]
    assert [(row["part"], row["variant"]) for row in ends] == [
        (part.name, part.variant) for part in parts(["default", "other"])
    ]
    assert not [row for row in found if "failed" in row]
    for row in found:
        assert all(row[field] not in ("", None) for field in rows.STAMP)
        assert row["dry"]
    for part, backend in (("variants", "cpu"), ("triton", "triton")):
        assert {row["backend"] for row in found if row["part"] == part} == {backend}


def test_a_dry_runs_report_has_every_goal(dry: Path) -> None:
    for goal in GOALS:
        lines = cells(dry / "gpu.md", goal.what)
        # on a CPU every test of tests/test_gpu.py is skipped
        expected = {"not measured"} if "test_gpu" in goal.what else {"held", "MISSED"}
        assert lines
        assert {line[-1] for line in lines} <= expected
    assert "A dry run, without a GPU" in (dry / "gpu.md").read_text()


def small_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **code: str) -> tuple[Suite, Any]:
    """A suite of parts that are a few lines each, by name."""
    monkeypatch.setenv("PYTHONPATH", "")
    leave = "from gpu import rows; import os; from pathlib import Path\n"
    leave += "def row(what): rows.append(Path(os.environ['FEDSPZO_GPU_ROWS']),"
    leave += " {'part': os.environ['FEDSPZO_GPU_PART'], 'variant': 'default', 'backend': 'cpu',"
    leave += " 'card': 'a card', 'torch': '2', 'date': '', 'dry': True, 'what': what})\n"
    for name, lines in code.items():
        (tmp_path / f"part_{name}.py").write_text(leave + lines)
    suite = Suite(tmp_path, {"default": tmp_path}, dry=True)
    return suite, [Part(name, (f"part_{name}",), seconds=2) for name in code]


def test_a_part_that_crashes_hangs_or_dies_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, chosen = small_suite(
        tmp_path,
        monkeypatch,
        crashes="row('a'); raise SystemExit('out of memory')",
        hangs="import time; row('b'); time.sleep(600)",
        dies="row('c'); open(os.environ['FEDSPZO_GPU_ROWS'], 'a').write('{')\n"
        "os.kill(os.getpid(), 9)",
        works="row('d')",
    )
    begin = time.monotonic()
    suite.run(chosen)
    assert time.monotonic() - begin < 60
    found = rows.read(tmp_path / "rows.jsonl")
    lines = {row["what"]: row for row in found if row["what"] != "end of part"}
    assert list(lines) == ["a", "b", "c", "d"]
    ends = {row["part"]: row.get("failed") for row in found if row["what"] == "end of part"}
    assert "out of memory" in ends["crashes"]
    assert ends["hangs"] == "killed after 2 s"
    assert ends["dies"].startswith("status -9")
    assert ends["works"] is None
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name}" in text for name in ("crashes", "hangs", "dies", "works"))
    assert "killed after 2 s" in text


def test_a_row_that_the_report_cannot_read_stops_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, chosen = small_suite(tmp_path, monkeypatch, one="row('a')", two="row('b')")
    row = dict.fromkeys(rows.STAMP, "x") | {"part": "passes", "variant": "default", "what": "c"}
    rows.append(suite.rows, {**row, "form": "MeZO", "over_fused": 2.0})  # of which shape?
    rows.append(suite.rows, {"half": "a row"})
    suite.run(chosen)
    assert [row["what"] for row in rows.read(suite.rows)] == [
        *("c", "a", "end of part", "b", "end of part")
    ]
    assert "no report: KeyError: 'shape'" in capsys.readouterr().out


def test_a_parts_children_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import subprocess, sys, time; time.sleep(4); open('late', 'w')"
    suite, chosen = small_suite(
        tmp_path,
        monkeypatch,
        hangs=f"import subprocess, sys, time\nos.chdir({str(tmp_path)!r})\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])",
    )
    suite.run(chosen)
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_libraries_that_do_not_serve_are_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, chosen = small_suite(
        tmp_path, monkeypatch, first="import served_here; row('serves')", second="row('next')"
    )
    new = tmp_path / "new"
    new.mkdir()
    for module in ("part_first.py", "part_second.py"):
        (new / module).write_text((tmp_path / module).read_text())
    (new / "served_here.py").touch()
    suite.run(checked(suite, chosen, lambda: {"default": new}))
    ends = [row for row in rows.read(suite.rows) if row["what"] == "end of part"]
    assert [row["part"] for row in ends] == ["first", "first", "second"]
    assert "No module named 'served_here'" in ends[0]["failed"]
    assert not any("failed" in row for row in ends[1:])


def test_a_suite_that_is_ended_leaves_a_report_and_no_process(tmp_path: Path) -> None:
    needs_cpu_backend()
    suite = subprocess.Popen(
        ["bash", str(ROOT / "benchmarks/gpu_suite.sh"), "--dry", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not rows.read(tmp_path / "rows.jsonl") and time.monotonic() < end:
        time.sleep(0.05)
    suite.terminate()
    assert suite.wait(30) != 0
    assert "| default | serving |" in (tmp_path / "gpu.md").read_text()
    before = rows.read(tmp_path / "rows.jsonl")
    time.sleep(2)
    assert rows.read(tmp_path / "rows.jsonl") == before


def test_after_the_deadline_no_part_starts(tmp_path: Path) -> None:
    suite = Suite(tmp_path, {}, deadline=0, dry=True)
    suite.run(parts())
    failed = [row["failed"] for row in rows.read(tmp_path / "rows.jsonl")]
    assert failed == ["no time was left"] * len(parts())
    for goal in GOALS:
        assert [line[-1] for line in cells(tmp_path / "gpu.md", goal.what)] == ["not measured"]


def test_another_backend_than_asked_for_is_refused(tmp_path: Path) -> None:
    needs_cpu_backend()

    class Other(Suite):
        def _environment(self, part: Part) -> dict[str, str]:
            return {**super()._environment(part), "FEDSPZO_BACKEND": "reference"}

    suite = Other(tmp_path, {}, dry=True)
    assert not suite.one(Part("environment", ("gpu.environment",), 60))
    end = rows.read(tmp_path / "rows.jsonl")[-1]
    assert "no compiled backend serves the CPU" in end["failed"]
    code = "from gpu import device; device.serving()"
    environment = {"FEDSPZO_GPU_DRY": "1", "FEDSPZO_BACKEND": ""}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the cpu backend serves cpu tensors, but FEDSPZO_BACKEND is ''" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry", "--only", "a race"), "no part is called a race"),
        (("--libraries", "nowhere"), "has no default/_C_cuda.abi3.so; see gpu_suite.sh --build"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    needs_cpu_backend()
    command = ["bash", str(ROOT / "benchmarks/gpu_suite.sh"), str(tmp_path), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_folder_with_another_runs_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    command = ["bash", str(ROOT / "benchmarks/gpu_suite.sh"), "--dry", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "has the rows of another run; give a new folder" in done.stderr


def test_libraries_are_staged_beside_the_trees_python(tmp_path: Path) -> None:
    built = tmp_path / "built"
    for name in ("other", "default"):
        (built / name).mkdir(parents=True)
        (built / name / libraries.CUDA).write_text(name)
    (built / libraries.CPU).write_text("cpu")
    assert libraries.variants(built) == ["default", "other"]
    place = libraries.stage(built, "other", tmp_path / "staged")
    package = place / "fedspzo_kernels"
    assert (package / libraries.CUDA).read_text() == "other"
    assert (package / libraries.CPU).read_text() == "cpu"
    assert (package / "triton/kernel.py").exists()
    assert sorted(p.name for p in package.glob("*.so")) == [libraries.CPU, libraries.CUDA]


class FakeEvent:
    """An event whose clock is a counter."""

    clock = itertools.count()

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = next(self.clock)

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeStream:
    def wait_stream(self, other: FakeStream) -> None:
        assert isinstance(other, FakeStream)


class FakeGraph:
    replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_what_the_dry_run_leaves_out_calls_torch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of torch.cuda, on stand-ins that replace names that torch has."""
    from gpu import device

    slept: list[int] = []
    graph = FakeGraph()
    stand_ins: dict[str, Callable[..., Any]] = {
        "Event": FakeEvent,
        "synchronize": lambda: None,
        "_sleep": slept.append,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 77,
        "get_device_name": lambda: "a card",
        "current_stream": FakeStream,
        "Stream": FakeStream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": lambda: graph,
        "graph": lambda captures: nullcontext(),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(device, "DRY", False)
    runs: list[int] = []
    assert device.milliseconds(lambda: runs.append(1), 3) == 1
    assert len(runs) == 4
    assert slept == [device.CYCLES] * 3
    device.milliseconds(lambda: runs.append(1), 1, host=True, warm=False)
    assert (len(runs), len(slept)) == (5, 3)
    assert device.peak_bytes(lambda: runs.append(1)) == 77
    assert device.card() == "a card"
    one = torch.ones(())
    assert device.captured(lambda: one)() is one
    assert graph.replays == 1

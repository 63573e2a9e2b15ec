"""The number of threads is the faster of one and all, unless the user has chosen one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedspzo.app import threads as subject
from fedspzo.app.threads import ROUNDS, Threads


@pytest.fixture
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock, and a pass that takes so many seconds on one thread and on two."""

    def __init__(self, one: float, two: float) -> None:
        self.cost = {1: one, 2: two}
        self.now = 0.0
        self.passes = 0

    def work(self) -> None:
        self.passes += 1
        self.now += self.cost[torch.get_num_threads()]

    def threads(self) -> Threads:
        return Threads(self.work, lambda: self.now)


@pytest.mark.parametrize(
    ("one", "two_", "chosen"), [(0.1, 0.06, 2), (0.1, 0.095, 1), (4.0, 15.0, 1), (4.0, 2.1, 2)]
)
def test_the_faster_number_is_set(two: None, one: float, two_: float, chosen: int) -> None:
    machine = Machine(one, two_)
    threads = machine.threads()
    assert threads.choose() == torch.get_num_threads() == chosen
    assert threads.line.startswith(f"{chosen} thread")
    assert f"{one:.2g} s on one, and {two_:.2g} s on 2" in threads.line
    assert machine.passes == (4 if one > subject.LONG else 8)


def test_where_there_is_one_thread_nothing_is_timed() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    machine = Machine(1, 1)
    assert machine.threads().choose() == 1
    assert machine.passes == 0
    torch.set_num_threads(before)


def test_a_far_slower_round_is_looked_at(two: None) -> None:
    machine = Machine(0.1, 0.06)
    threads = machine.threads()
    threads.choose()
    machine.passes = 0
    for _ in range(ROUNDS):
        assert not threads.after_round(1.0)
    assert not threads.after_round(2.9)
    assert machine.passes == 0
    assert not threads.after_round(3.1)  # slower, but two are still the better number
    assert machine.passes == 8
    for _ in range(ROUNDS):
        assert not threads.after_round(9.0)  # the median is of the rounds since
    machine.cost[2] = 15.0
    assert threads.after_round(40.0)
    assert torch.get_num_threads() == 1


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False])
def test_a_run_reports_its_threads(
    small: bool,
    two: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tiny_run import write_run

    from fedspzo.app import run as running
    from fedspzo.app.config import load
    from fedspzo.app.data import read_splits
    from fedspzo.app.run_folder import RunFolder
    from fedspzo.journal.reader import JournalReader

    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedspzo.app.threads.SMALL", 10**9 if small else 0)
    chosen: list[Any] = []

    def choose(self: Threads) -> int:
        chosen.append(self)
        torch.set_num_threads(2)
        self.line = "2 threads: so it was measured"
        return 2

    monkeypatch.setattr(Threads, "choose", choose)
    path = Path("run.toml")
    path.write_text(path.read_text().replace("[mezo]\nlr = 1e-3\n", ""))
    config = load(path).with_overrides(output=Path("out"))
    splits = read_splits(config.data, config.task)
    with RunFolder(Path("out")) as folder:
        summary = running.run(config, splits, folder, choose_threads=True)
    run = JournalReader(Path("out/journal.fspz")).header["run"]
    text = capsys.readouterr().out
    if small:
        assert (chosen, summary["threads"], "threads" in run) == ([], 1, False)
        assert "It was computed on" not in text
    else:
        assert (len(chosen), summary["threads"], run["threads"]) == (1, 2, 2)
        assert "It was computed on 2 threads: so it was measured." in text
    torch.set_num_threads(2)
    with RunFolder(Path("again")) as folder:
        again = running.run(config.with_overrides(output=Path("again")), splits, folder, quiet=True)
    assert again["threads"] == 2  # it is left as it was
    assert len(chosen) == (not small)
    # an unfinished run goes on with the number it began with
    lines = Path("out/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("out/metrics.jsonl").write_text("".join(lines[:-1]))
    if not small:
        monkeypatch.setattr(Threads, "choose", lambda self: pytest.fail("it is known"))
        with RunFolder(Path("out"), resume=True) as folder:
            assert folder.resumes
            done = running.run(config, splits, folder, quiet=True, choose_threads=True)
        assert done["threads"] == 2
        assert done["digest"] == summary["digest"]


@pytest.mark.parametrize("set_", [True, False])
def test_the_command_line_leaves_what_the_user_set(
    set_: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from tiny_run import write_run

    from fedspzo.app import run as running
    from fedspzo.app.cli import main

    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked: list[bool] = []

    def run(*_: Any, choose_threads: bool, **__: Any) -> dict[str, Any]:
        asked.append(choose_threads)
        return {}

    monkeypatch.setattr(running, "run", run)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    arguments = ["run", "run.toml", "--quiet", "--output", "out"]
    assert main(arguments) == 0  # torch is imported, so its threads are the caller's
    monkeypatch.setitem(sys.modules, "fedspzo.app.run", SimpleNamespace(run=run))
    monkeypatch.delitem(sys.modules, "torch")
    if set_:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert main(arguments) == 0
    assert asked == [False, not set_]

"""Killed at any point, a run goes on to the bits of one that nobody disturbed.

The full form is `make faults`; `make test` runs a short one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import write_run

from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import Round

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
RUN = ["run", "run.toml", "--quiet", "--output", "out"]
RESUME = ["run", "--resume", "out", "--quiet"]
REPLAY = ["replay", "net", "kept.fspz", "--quiet", "-o", "replayed"]

SHORT, FULL = 6, int(os.environ.get("FEDSPZO_KILLS", "200"))
"""Points at which a run is killed."""
ROUNDS = 4 if FULL <= 800 else 6
"""Rounds of the run: four have 821 events, and each event is a point."""
REPLAY_SHORT, REPLAY_FULL = 3, 24
OUTSIDE_FULL = 12
"""Runs killed from outside, after some time, in a process with an interpreter of its own."""


class Machine:
    """A folder with a run's files, and processes in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        server = Path(__file__).with_name("fault_server.py")
        self.server = subprocess.Popen(
            [sys.executable, str(server)],
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, arguments: list[str], **kill: Any) -> dict[str, Any]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps({"arguments": arguments, **kill}) + "\n")
        self.server.stdin.flush()
        answer: dict[str, Any] = json.loads(self.server.stdout.readline())
        return answer

    def clear(self) -> None:
        for name in ("out", "replayed"):
            subprocess.run(["rm", "-rf", str(self.folder / name)], check=True)

    def go_on(self, number: int) -> dict[str, Any]:
        """The same command again or, every other time, where there is a journal, --resume."""
        resume = number % 2 and (self.out / "journal.fspz").exists()
        return self.ask(RESUME if resume else RUN)

    def finished(self) -> bool:
        """Whether the summary, the last line, is on disk as a whole."""
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        return bool(lines) and lines[-1].endswith("}\n") and '"summary": true' in lines[-1]

    def result(self) -> dict[str, Any]:
        """All that a run leaves, but for times."""
        left: dict[str, Any] = {"files": sorted(path.name for path in self.out.iterdir())}
        for name in ("metrics.jsonl", "mezo.jsonl"):
            rows = [json.loads(line) for line in (self.out / name).read_text().splitlines()]
            left[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        for name in ("journal.fspz", "mezo.fspz"):
            left[name] = [
                (content.update, content.reports, content.digest, content.bytes_down)
                if isinstance(content, Round)
                else content
                for _, content in DecodedJournal(self.out / name).entries()
            ]
        for path in sorted((self.out / "model").iterdir()):
            left[path.name] = path.read_bytes()
        left["config"] = (self.out / "config.toml").read_text()
        return left


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("faults")
    write_run(folder)
    config = folder / "run.toml"
    config.write_text(config.read_text().replace("rounds = 4", f"rounds = {ROUNDS}"))
    machine = Machine(folder)
    yield machine
    machine.server.communicate()


@pytest.fixture(scope="module")
def undisturbed(machine: Machine) -> tuple[list[str], dict[str, Any]]:
    """The events of a run to its end, and what it leaves."""
    done = machine.ask(RUN)
    assert done["status"] == 0, done["error"]
    (machine.folder / "kept.fspz").write_bytes((machine.out / "journal.fspz").read_bytes())
    return done["events"], machine.result()


def points(events: list[str], count: int) -> list[int]:
    """One event of each of `count` stretches of the run, and the first of half as many kinds."""
    rng = random.Random(5)
    stretch = len(events) / count
    chosen = {int((number + rng.random()) * stretch) for number in range(count)}
    kinds = [events.index(name) for name in sorted(set(events))]
    chosen |= set(rng.sample(kinds, min(len(kinds), count // 2)))
    others = sorted(set(range(len(events))) - chosen)  # two stretches may give the same event
    return sorted(chosen | set(rng.sample(others, max(0, count - len(chosen)))))


def kill_and_go_on(machine: Machine, expected: dict[str, Any], event: int, name: str) -> None:
    machine.clear()
    killed = machine.ask(RUN, event=event)
    assert killed["status"] == -signal.SIGKILL, (event, name, killed["error"])
    if event % 3 == 0 and not machine.finished():  # and killed again while it goes on
        again = machine.ask(RUN, event=event % 31)
        assert again["status"] == -signal.SIGKILL, (event, name, again["error"])
    go_on_to_the_end(machine, expected, event, name)


def go_on_to_the_end(machine: Machine, expected: dict[str, Any], number: int, name: str) -> None:
    if machine.finished():  # its last line was on disk: there is nothing left to do
        assert "holds a run" in machine.ask(RUN)["error"]
    else:
        done = machine.go_on(number)
        assert done["status"] == 0, (number, name, done["error"])
    assert machine.result() == expected, (number, name)


def check_points(machine: Machine, undisturbed: Any, count: int) -> int:
    events, expected = undisturbed
    chosen = points(events, count)
    assert len(chosen) >= count
    for event in chosen:
        kill_and_go_on(machine, expected, event, events[event])
    return len(chosen)


def check_replay(machine: Machine, undisturbed: Any, count: int) -> None:
    digest = undisturbed[1]["metrics.jsonl"][-1]["digest"]
    machine.clear()
    events = machine.ask(REPLAY)["events"]
    model = (machine.folder / "replayed" / "model.safetensors").read_bytes()
    assert model == undisturbed[1]["model.safetensors"]
    for event in points(events, count):
        machine.clear()
        killed = machine.ask(REPLAY, event=event)
        assert killed["status"] == -signal.SIGKILL
        whole = (machine.folder / "replayed").exists()  # whole, or not there at all
        done = machine.ask(REPLAY)
        assert (done["status"] == 2) == whole, done["error"]
        checked = machine.ask(["verify", "replayed", "kept.fspz"])
        assert checked["status"] == 0, checked["error"]
        assert digest in checked["error"]


def test_killed_at_some_points(machine: Machine, undisturbed: Any) -> None:
    check_points(machine, undisturbed, SHORT)


def test_replay_killed_at_some_points(machine: Machine, undisturbed: Any) -> None:
    check_replay(machine, undisturbed, REPLAY_SHORT)


@pytest.mark.faults
def test_killed_at_many_points(machine: Machine, undisturbed: Any) -> None:
    started = time.monotonic()
    count = check_points(machine, undisturbed, FULL)
    print(
        f"\nkilled at {count} of {len(undisturbed[0])} events in {time.monotonic() - started:.0f} s"
    )
    for kind in sorted(set(undisturbed[0])):
        print(f"  {undisturbed[0].count(kind)} {kind}")


@pytest.mark.faults
def test_replay_killed_at_many_points(machine: Machine, undisturbed: Any) -> None:
    check_replay(machine, undisturbed, REPLAY_FULL)


@pytest.mark.faults
def test_killed_from_outside_at_any_time(machine: Machine, undisturbed: Any) -> None:
    program = [sys.executable, "-m", "fedspzo", *RUN]
    started = time.monotonic()
    machine.clear()
    subprocess.run(program, cwd=machine.folder, env=ENVIRONMENT, check=True)
    whole = time.monotonic() - started
    rng = random.Random(7)
    killed = 0
    for number in range(OUTSIDE_FULL):
        machine.clear()
        process = subprocess.Popen(program, cwd=machine.folder, env=ENVIRONMENT)
        time.sleep(whole * rng.uniform(0.2, 1.0))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            continue
        go_on_to_the_end(machine, undisturbed[1], number, "from outside")
    assert killed > OUTSIDE_FULL // 2

"""Progress: what is long is told of, and on a narrow or dumb terminal the essential stays."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from fedspzo.app import waiting as subject
from fedspzo.app.progress import ProgressReport
from fedspzo.app.waiting import waiting

ROW = {"train_loss": 0.5, "accuracy": 0.875, "bytes_up": 123_000, "bytes_down": 456_000}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line after 20 ms, the next ones after 40 and 80 more."""
    monkeypatch.setattr(subject, "FIRST", 0.02)


def terminal(patch: pytest.MonkeyPatch, kind: str, columns: int) -> None:
    patch.setenv("TTY_COMPATIBLE", "1")  # rich takes any stream for a terminal
    patch.setenv("TERM", kind)
    patch.setenv("COLUMNS", str(columns))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()


def until(told: Any) -> None:
    end = time.monotonic() + 5
    while not told() and time.monotonic() < end:
        time.sleep(0.01)


def test_what_takes_long_is_told_ever_more_seldom(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, float]] = []
    monkeypatch.setattr(subject, "say", lambda line: said.append((line, time.monotonic())))
    start = time.monotonic()
    with waiting("loading net"):
        until(lambda: len(said) >= 3)
    assert said[0][0] == "fedspzo: still loading net, 0 s so far"
    for (_, moment), least in zip(said, (0.02, 0.06, 0.14), strict=False):
        assert moment - start >= least - 0.001
    count = len(said)
    time.sleep(0.05)
    assert len(said) == count  # it ends with the context


def test_what_is_short_or_quiet_is_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with waiting("loading net", quiet=True):
        time.sleep(0.05)
    monkeypatch.setattr(subject, "FIRST", 60.0)
    with waiting("loading net"):
        pass
    assert capsys.readouterr().err == ""


def test_a_long_round_is_told_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(subject, "say", said.append)
    with ProgressReport("FedSPZO", 4) as progress:
        until(lambda: said)  # before the first evaluation has ended
        assert said[0] == "FedSPZO  round 0/4  (0 s so far)"
        progress.update({"round": 0, "accuracy": 0.5})
        progress.update({"round": 1, **ROW})
        said.clear()
        until(lambda: said)
    assert re.fullmatch(
        r"FedSPZO  round 1/4  loss 0.500  accuracy 87.5%  up 123 kB  down 456 kB  \d+ s left"
        r"  \(\d+ s so far\)",
        said[0],
    )


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 200])
def test_a_narrow_bar_keeps_the_round_and_the_time_left(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch, "xterm", columns)
    with ProgressReport("FedSPZO", 40) as progress:
        for number in (0, 4, 8):
            progress.update({"round": number})
            time.sleep(0.02)
        progress.update({"round": 12, **ROW})
    last = [line for line in lines(capsys) if line.strip()][-1]
    assert len(last) <= columns
    assert re.search(r"^. FedSPZO .*12/40 +\d:\d\d:\d\d left", last)
    assert ("loss 0.500" in last) == (columns >= 40), last
    assert ("down 456 kB" in last) == (columns == 200)


@pytest.mark.parametrize("columns", [30, 40, 200])
def test_a_dumb_terminal_has_lines(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(monkeypatch, "dumb", columns)
    with ProgressReport("FedSPZO", 40) as progress:
        progress.update({"round": 0})
        progress.update({"round": 12, **ROW})
    shown = lines(capsys)
    assert shown[0] == "FedSPZO  round 0/40"
    assert re.search(r"^FedSPZO  round 12/40.*  \d+ s left$", shown[1])
    assert len(shown[1]) <= max(columns, 31)
    assert ("down 456 kB" in shown[1]) == (columns == 200)

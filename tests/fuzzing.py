"""Fuzzing: how many inputs a test gets, a limit on each one's time, and bytes gone wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCALE = int(os.environ.get("FEDSPZO_FUZZ", "1"))
"""1: the same inputs each time. More (`make fuzz`): that many times as many, new ones each time."""

PLANNED: dict[str, int] = {}
"""How many inputs each test gets at SCALE 1."""

SECONDS = 10
"""What no input may take."""

Check = Callable[[Any, Path], None]


def fuzz(count: int, inputs: st.SearchStrategy[Any]) -> Callable[[Check], Check]:
    """Make a test of a check, which takes an input and a scratch folder: of `count` at SCALE 1."""

    def decorate(check: Check) -> Check:
        def test(scratch: Path) -> None:
            seen = 0

            @settings(
                max_examples=count * SCALE,
                derandomize=SCALE == 1,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(inputs)
            def each(value: Any) -> None:
                nonlocal seen
                seen += 1
                with limited():
                    check(value, scratch)

            each()
            assert seen >= count * SCALE

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        PLANNED[check.__name__] = count
        return pytest.mark.fuzz(test)

    return decorate


@contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError in what takes too long."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


NUMBERS = [b"\xff" * 4, bytes(4), b"\xff" * 8, b"\0\0\xc0\x7f", b"\xff\x7f", b"\0\0\x80\x7f"]
"""Counts that are too large, NaN and infinity, as they stand in a file."""

ACCIDENTS: dict[str, Callable[[bytes, int, int, bytes], bytes]] = {
    "set": lambda data, at, to, new: data[:at] + new + data[at + len(new) :],
    "insert": lambda data, at, to, new: data[:at] + new + data[at:],
    "cut": lambda data, at, to, new: data[: min(at, to)] + data[max(at, to) :],
    "lose": lambda data, at, to, new: data[:at] + data[at + len(new) :],
    "end": lambda data, at, to, new: data[:at],
    "double": lambda data, at, to, new: data[: max(at, to)] + data[min(at, to) :],
}

_place = st.integers(0, 2**16)
_new = st.sampled_from(NUMBERS) | st.binary(min_size=1, max_size=6)
accidents = st.lists(
    st.tuples(st.sampled_from(sorted(ACCIDENTS)), _place, _place, _new), min_size=1, max_size=4
)


def damage(data: bytes, happened: list[tuple[str, int, int, bytes]]) -> bytes:
    """`data` after some `accidents`, one after another."""
    for kind, at, to, new in happened:
        size = len(data) + 1
        data = ACCIDENTS[kind](data, at % size, to % size, new)
    return data


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` after one to four accidents."""
    return accidents.map(lambda happened: damage(data, happened))

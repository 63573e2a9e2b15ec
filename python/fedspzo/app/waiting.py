"""Says on stderr that something long goes on: after two seconds, and then ever more seldom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from .streams import say

FIRST = 2.0
"""Seconds of silence before the first line. Each silence is twice as long as the one before."""


class Waiting:
    """Prints a line to stderr where nothing was printed for long. It is a context manager.

    Args:
        line: returns the line, given the seconds since the start.
        quiet: print nothing. Default False.
    """

    def __init__(self, line: Callable[[float], str], *, quiet: bool = False) -> None:
        self.line = line
        self.quiet = quiet
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._told = 0.0

    def __enter__(self) -> Waiting:
        self.told()
        if not self.quiet:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def told(self) -> None:
        """Begin the silence anew, because something was printed."""
        self._told = time.monotonic()

    def _watch(self) -> None:
        start, silence = self._told, FIRST
        while not self._ended.wait(max(self._told + silence - time.monotonic(), 0.01)):
            now = time.monotonic()
            if now - self._told >= silence:
                say(self.line(now - start))
                self._told = now
                silence *= 2


@dataclass
class Count:
    """Counts what is done of something long.

    Attributes:
        unit: what is counted, such as "rows".
        total: how much there is in all. Default None: it is not known.
        done: how much is done. Default 0.
    """

    unit: str = "rows"
    total: int | None = None
    done: int = 0

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.done:,}{of} {self.unit}"


def waiting(what: str, *, count: Count | None = None, quiet: bool = False) -> Waiting:
    """Return a context that says every so often what goes on within it.

    Args:
        what: such as "loading net".
        count: tells how far it is. Default None: that is not known.
        quiet: print nothing. Default False.
    """

    def line(seconds: float) -> str:
        far = "" if count is None else f"{count} in "
        return f"fedspzo: still {what}, {far}{seconds:.0f} s so far"

    return Waiting(line, quiet=quiet)

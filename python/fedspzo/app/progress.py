"""Shows how far a run is, on a terminal or in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from .console import PlainConsole
from .human_bytes import human_bytes
from .waiting import Waiting

Row = Mapping[str, Any]

LINES = 10
BAR, WIDE = 24, 80
"""Width of a progress bar, and of the terminals that have one, in characters."""


class ProgressReport:
    """Shows a run's progress on stderr: round, time left, loss, accuracy and bytes.

    It is a bar on a terminal. Elsewhere it is about `LINES` lines, and one more where a round is
    long (`Waiting`). A narrow terminal shows the round and the time left, and of the rest what
    fits. It is a context manager.

    Args:
        title: the first word of each line.
        rounds: number of rounds of the run.
        quiet: write nothing. Default False.
    """

    def __init__(self, title: str, rounds: int, *, quiet: bool = False) -> None:
        self.title = title
        self.rounds = rounds
        self.quiet = quiet
        self.started = time.monotonic()
        self.first: int | None = None
        self.done = 0
        self.lines = 0
        self.seen: dict[str, Any] = {}
        console = PlainConsole(stderr=True)
        # rich takes every dumb terminal to be 80 columns wide
        self.width = shutil.get_terminal_size().columns if console.is_terminal else None
        self.bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal and not quiet:
            wide = console.width >= WIDE
            columns = [
                SpinnerColumn("line", finished_text=" "),  # it turns in a long round too
                TextColumn("{task.description}"),
                *([BarColumn(bar_width=BAR)] if wide else []),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                TextColumn("left"),
                TextColumn("{task.fields[state]}"),
            ]
            fixed = f"| {title} {rounds}/{rounds} 0:00:00 left "
            self.room = console.width - len(fixed) - wide * (BAR + 1)
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task(title, total=rounds, state="")
        self.waiting = Waiting(self._long, quiet=quiet or self.bar is not None)

    def __enter__(self) -> ProgressReport:
        if self.bar is not None:
            self.bar.start()
        self.waiting.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.waiting.__exit__(kind, error, trace)
        if self.bar is not None:
            self.bar.stop()

    def update(self, row: Row) -> None:
        """Show a round's row.

        The accuracy stays as it was where a round was not evaluated. A training loss that a row has
        none of is not shown, as an old one would look like this round's.
        """
        if row.get("train_loss") is None:
            self.seen.pop("train_loss", None)
        self.seen = self.seen | {key: value for key, value in row.items() if value is not None}
        self.done = done = int(row["round"])
        if self.first is None:
            self.first = done  # a resumed run does not start at 0
        if self.bar is not None:
            self.bar.update(self.task, completed=done, state=self._state(self.room))
            return
        tenth, new = done * LINES // self.rounds, done - self.first
        if self.quiet or (new > 0 and tenth == self.lines):
            return
        self.lines = tenth
        print(self._line(), file=sys.stderr, flush=True)
        self.waiting.told()

    def _line(self) -> str:
        """Return a line with the last round, and the time left if a round was played."""
        new = self.done - (self.done if self.first is None else self.first)
        start = f"{self.title}  round {self.done}/{self.rounds}"
        left = (time.monotonic() - self.started) * (self.rounds - self.done) / max(new, 1)
        remaining = f"  {left:.0f} s left" if new > 0 else ""
        room = None if self.width is None else self.width - len(start + remaining) - 2
        state = self._state(room)
        return f"{start}{'  ' if state else ''}{state}{remaining}"

    def _long(self, seconds: float) -> str:
        """Return the line for a long round."""
        return f"{self._line()}  ({seconds:.0f} s so far)"

    def _state(self, room: int | None = None) -> str:
        """Return what is known of a round: of its parts as many as fit into `room` characters."""
        parts = []
        for key, form in (("train_loss", "loss {:.3f}"), ("accuracy", "accuracy {:.1%}")):
            if key in self.seen:
                parts.append(form.format(self.seen[key]))
        if self.seen.get("skipped"):
            parts.append(f"{self.seen['skipped']} steps skipped")
        for key, sign in (("bytes_up", "up"), ("bytes_down", "down")):
            if key in self.seen:
                parts.append(f"{sign} {human_bytes(self.seen[key])}")
        while parts and room is not None and len("  ".join(parts)) > room:
            parts.pop()
        return "  ".join(parts)

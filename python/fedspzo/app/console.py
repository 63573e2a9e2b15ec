"""The console on which tables and progress are printed."""

from __future__ import annotations

from rich.console import Console


class PlainConsole(Console):
    """A console that raises BrokenPipeError where its reader has gone, like `print`."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; the base class would exit with code 1."""
        raise BrokenPipeError

"""Standard output and error, as streams that print any text and may be closed or full."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


def print_any_text() -> None:
    """Let stdout and stderr escape what their encoding does not have, such as a letter in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line to stderr, if it can be written."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: object) -> None:
    """Send what is left in a stream to nowhere; else Python reports it again at the exit."""
    if isinstance(stream, io.TextIOWrapper):
        with suppress(OSError):  # it may have no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

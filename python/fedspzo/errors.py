"""Errors that a user can mend: one line that names the fault, its place and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Reports a fault in the user's input, in one line: the fault, its place and the remedy.

    A line of more than LONGEST characters loses its middle. Such a line repeats a long value. Line
    breaks and other characters that are not printed, which come from a file, are escaped.
    """

    LONGEST = 1000

    def __init__(self, message: str) -> None:
        message = printable(message)
        if len(message) > self.LONGEST:
            message = f"{message[: self.LONGEST // 2]} ... {message[-self.LONGEST // 2 :]}"
        super().__init__(message)


def printable(text: str) -> str:
    r"""Return a text with escapes, such as \n, for the characters that are not printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: object) -> str:
    """Return an error's message in one line: runs of blanks and line breaks become one blank."""
    return " ".join(str(error).split())


@contextmanager
def explained(fault: str, remedy: str) -> Iterator[None]:
    """Turn any exception of the `with` block but an InputError into an InputError of one line.

    For code that works on a user's files, of which each value may be wrong.

    Args:
        fault: the beginning of the line, before the exception's name and message.
        remedy: the end of the line.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        if len(reason) > 200:
            reason = reason[:200].rstrip() + " ..."
        raise InputError(f"{fault} ({reason}); {remedy}") from error

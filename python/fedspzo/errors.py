"""Errors that a user can mend: one line that names the fault, its place and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """Reports a fault in the user's input, in one line: the fault, its place and the remedy.

    A line of more than LONGEST characters loses its middle. Such a line repeats a long value.
    """

    LONGEST = 1000

    def __init__(self, message: str) -> None:
        if len(message) > self.LONGEST:
            message = f"{message[: self.LONGEST // 2]} ... {message[-self.LONGEST // 2 :]}"
        super().__init__(message)


def one_line(error: object) -> str:
    """Return an error's message in one line: runs of blanks and line breaks become one blank."""
    return " ".join(str(error).split())

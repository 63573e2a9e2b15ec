"""The errors that a user can mend: one line that names what, where and the remedy."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user wrote is wrong: one line that says what, where, and how to mend it.

    A line of more than LONGEST characters, because it repeats a long value, loses its middle.
    """

    LONGEST = 1000

    def __init__(self, message: str) -> None:
        if len(message) > self.LONGEST:
            message = f"{message[: self.LONGEST // 2]} ... {message[-self.LONGEST // 2 :]}"
        super().__init__(message)


def one_line(error: object) -> str:
    """The message of an error with its line breaks and runs of blanks made single blanks."""
    return " ".join(str(error).split())

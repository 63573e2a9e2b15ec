"""Arguments of the command line: paths, and options that several commands have."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from fedspzo.errors import InputError


class Parser(argparse.ArgumentParser):
    """Parses arguments, and raises InputError with one line in place of printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with the message, and where help is."""
        raise InputError(f"{message}; see '{self.prog} --help'")


def path(text: str) -> Path:
    """Return a path given on the command line."""
    return Path(name(text))


def name(text: str) -> str:
    """Return a path or name given on the command line, if it can be one."""
    try:
        if not text.strip():
            raise ValueError("it is empty")
        os.path.lexists(text)
        Path(text).exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is no path ({reason})") from None
    return text


def check_unicode(what: str, path: Path) -> None:
    """Raise InputError if a path, from the root on, has bytes that are no text.

    Such a path cannot be written into a config or a journal, nor do tokenizers read it.

    Args:
        what: what the path is of, for the message.
        path: the path.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{what} {str(path)!r} is no text in the encoding of this system"
            f" ({sys.getfilesystemencoding()}), from the root on; rename it, or set LC_ALL=C.UTF-8"
        ) from None


def check_new_folder(output: Path, remedy: str) -> None:
    """Raise InputError unless `output` is no link, and does not exist or is an empty folder."""
    check_unicode("output", output)
    if output.is_symlink():
        raise InputError(f"output '{output}' is a link; {remedy}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output '{output}' is there already; {remedy}")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the option --quiet."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def add_salvage(parser: argparse.ArgumentParser) -> None:
    """Add the option --salvage of a command that reads a journal."""
    parser.add_argument(
        "--salvage", action="store_true", help="take a damaged journal up to the damage"
    )

"""Checks that packages which not everybody has are there, before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from fedspzo.errors import InputError


def check_installed(what: str, extra: str, *packages: str) -> None:
    """Raise InputError unless packages are there.

    Args:
        what: what needs them, the message's subject.
        extra: the extra of fedspzo that brings them.
        packages: the packages.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{what} needs {' and '.join(missing)}, which is not installed; pip install"
            f" 'fedspzo[{extra}]'"
        )

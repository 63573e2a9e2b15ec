"""Checks that packages which not everybody has are there, before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from fedspzo.errors import InputError


def check_installed(what: str, extra: str, *packages: str) -> None:
    """Raise InputError unless packages are there.

    Args:
        what: what needs them, for the message.
        extra: the extra of fedspzo that brings them.
        packages: the packages.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{what}, but {' and '.join(missing)} is not installed; pip install 'fedspzo[{extra}]'"
        )

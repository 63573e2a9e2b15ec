"""Check single values, each with one clear error. This module imports nothing heavy."""

from __future__ import annotations

import sys

LIMIT_8, LIMIT_16, LIMIT_32, LIMIT_64 = 2**8, 2**16, 2**32, 2**64
"""Exclusive upper bounds of the messages' fields of 8 to 64 bits (docs/federation.md)."""


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless `value` is an int with low <= value <= high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give a whole number from {low} to {high}")


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a finite number above zero."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}; give a finite number above 0")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")


def check_text(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a text that can be written as UTF-8."""
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} is {value!r}; it should be a text")

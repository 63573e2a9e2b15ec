"""Import a package's public names when they are first used.

So a part of a package can be used without torch, and a mistake in a config is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's `__getattr__` (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: each public name's module, relative to the package (".settings").

    Returns:
        A function that returns the object of a name. It raises AttributeError for another name.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name], package), name)

    return get

"""How messages name what says how data is read: keys of a config, or options of a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """The names of the settings with which a reader's messages end.

    Attributes:
        options: the option of a command for each key of [data]. A key that is not in it cannot be
            set. Default None: there is a config, where every key can be set.
    """

    options: Mapping[str, str] | None = None

    def can_set(self, key: str) -> bool:
        """Return whether the reader of a message can set a key of [data]."""
        return self.options is None or key in self.options

    def setting(self, key: str, value: str | None = None) -> str:
        """Return the name of a setting, with a value as it is written there.

        Args:
            key: the key of [data].
            value: the value. Default None: the name alone.
        """
        if self.options is None:
            return f"[data] {key}" if value is None else f"[data] {key} = {value!r}"
        return self.options[key] if value is None else f"{self.options[key]} {value}"


IN_CONFIG = Naming()
"""The names in a config."""

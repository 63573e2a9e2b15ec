"""A reader of bytes that never reads past their end: of messages, and of a journal's records."""

from __future__ import annotations

import struct
from typing import Any


class Reader:
    """Takes values off a body, front to back."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    def read(self, count: int) -> bytes:
        """The next `count` bytes; ValueError where there are fewer."""
        end = self._position + count
        if end > len(self._body):
            raise ValueError(
                f"body ends at byte {len(self._body)}, a field there ends at byte {end}"
            )
        piece = self._body[self._position : end]
        self._position = end
        return piece

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next values, as `layout` says."""
        return layout.unpack(self.read(layout.size))

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._body) - self._position

    def finish(self) -> None:
        """Raise ValueError unless all has been read."""
        if self.left:
            raise ValueError(f"body has {self.left} bytes after its last field")

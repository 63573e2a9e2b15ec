"""A reader of bytes that never reads past their end: of messages, and of a journal's records."""

from __future__ import annotations

import struct
from typing import Any

_WHOLE_BYTES = 10
"""What a whole number below 2**64 takes at most, seven bits a byte."""


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

    def whole(self) -> int:
        """The next whole number, as `encode_whole` made it; ValueError from 2**64 on."""
        value = 0
        for place in range(_WHOLE_BYTES):
            byte = self.read(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80 and value < 2**64:
                return value
        raise ValueError("a whole number there is not below 2**64")

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._body) - self._position

    def finish(self) -> None:
        """Raise ValueError unless all has been read."""
        if self.left:
            raise ValueError(f"body has {self.left} bytes after its last field")


def encode_whole(value: int) -> bytes:
    """A whole number below 2**64 in few bytes where it is small: unsigned LEB128.

    Seven bits a byte, the lowest first; the eighth bit says that there is another byte.
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

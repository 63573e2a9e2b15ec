"""Read the bytes of messages and of a journal's records, and never past their end."""

from __future__ import annotations

import struct
from typing import Any

_WHOLE_BYTES = 10
"""Largest number of bytes of a whole number below 2**64, at seven bits a byte."""


class Reader:
    """Reads values from a body, front to back.

    Args:
        body: the bytes to read.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            ValueError: there are fewer.
        """
        end = self._position + count
        if end > len(self._body):
            raise ValueError(
                f"body ends at byte {len(self._body)}, a field there ends at byte {end}"
            )
        piece = self._body[self._position : end]
        self._position = end
        return piece

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Return the next values, as `layout` describes them.

        Raises:
            ValueError: the body ends before them.
        """
        return layout.unpack(self.read(layout.size))

    def whole(self) -> int:
        """Return the next whole number, as `encode_whole` wrote it.

        Raises:
            ValueError: the body ends before it, or it is 2**64 or more.
        """
        value = 0
        for place in range(_WHOLE_BYTES):
            byte = self.read(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80 and value < 2**64:
                return value
        raise ValueError("a whole number there is not below 2**64")

    @property
    def left(self) -> int:
        """The number of bytes that have not been read."""
        return len(self._body) - self._position

    def finish(self) -> None:
        """Raise ValueError unless all bytes have been read."""
        if self.left:
            raise ValueError(f"body has {self.left} bytes after its last field")


def encode_whole(value: int) -> bytes:
    """Encode a whole number below 2**64 as unsigned LEB128, so that a small one takes few bytes.

    Each byte holds seven bits, the lowest first. Its eighth bit says that another byte follows.
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

"""The frame of a message, and how single values stand in it."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import TypeVar

MAGIC = b"FSPZ"
VERSION = 1
PLAN, REPORT, WEIGHTS = 1, 2, 3

_HEADER = struct.Struct("<4sBBI")  # magic, version, kind, bytes of the body
_CHECKSUM = struct.Struct("<I")

OVERHEAD = _HEADER.size + _CHECKSUM.size
"""Bytes of a message beside its body."""

T = TypeVar("T")


def frame(kind: int, body: bytes) -> bytes:
    """A message: header, body, CRC-32 of both."""
    message = _HEADER.pack(MAGIC, VERSION, kind, len(body)) + body
    return message + _CHECKSUM.pack(zlib.crc32(message))


def unframe(kind: int, data: bytes) -> bytes:
    """The body of a message.

    Raises:
        ValueError: the bytes are no such message, cut short, damaged or of another version.
    """
    if len(data) < OVERHEAD:
        raise ValueError(f"message has {len(data)} bytes, too few for any; send it whole")
    magic, version, found, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"message starts with {magic!r}, not {MAGIC!r}; it is not from fedspzo")
    if version != VERSION:
        raise ValueError(
            f"message has version {version}, this fedspzo speaks {VERSION};"
            " install the same release"
        )
    if found != kind:
        raise ValueError(f"message is of kind {found}, expected kind {kind}")
    if length != len(data) - OVERHEAD:
        raise ValueError(
            f"message says its body has {length} bytes, but"
            f" {len(data) - OVERHEAD} came; send it whole"
        )
    expected = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0]
    actual = zlib.crc32(data[: -_CHECKSUM.size])
    if actual != expected:
        raise ValueError(
            f"checksum is {actual:#010x}, the message says {expected:#010x}; resend it"
        )
    return data[_HEADER.size : -_CHECKSUM.size]


def from_optional(value: float | None) -> float:
    """The number that stands for `value` in a message: NaN for None."""
    return math.nan if value is None else value


def to_optional(value: float) -> float | None:
    """The inverse of `from_optional`."""
    return None if math.isnan(value) else value


def pick(name: str, index: int, choices: Sequence[T]) -> T:
    """The choice a code stands for; ValueError if it stands for none."""
    if index >= len(choices):
        raise ValueError(f"{name} has code {index}; known are 0 to {len(choices) - 1}")
    return choices[index]

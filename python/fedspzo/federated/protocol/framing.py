"""The frame of a message, and the encoding of single values in it."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Sequence
from typing import TypeVar

from fedspzo.journal.records import DIGEST_BYTES

MAGIC = b"FSPZ"
VERSION = 1
PLAN, REPORT, WEIGHTS, PROBE, PROBE_REPORT = range(1, 6)

_HEADER = struct.Struct("<4sBBI")  # magic, version, kind, bytes of the body
_CHECKSUM = struct.Struct("<I")

OVERHEAD = _HEADER.size + _CHECKSUM.size
"""Bytes of a message besides its body."""

T = TypeVar("T")


def frame(kind: int, body: bytes) -> bytes:
    """Return a message: the header, the body, and the CRC-32 of both."""
    message = _HEADER.pack(MAGIC, VERSION, kind, len(body)) + body
    return message + _CHECKSUM.pack(zlib.crc32(message))


def kind_of(data: bytes) -> int | None:
    """Return the kind that a message says it is of; None if it is too short to say one."""
    return _HEADER.unpack_from(data)[2] if len(data) >= _HEADER.size else None


def unframe(kind: int, data: bytes) -> bytes:
    """Return the body of a message.

    Args:
        kind: the kind that the message has to be of, such as `PLAN`.
        data: the whole message.

    Raises:
        ValueError: the message is of another kind or version, cut short, or damaged.
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
    """Return the number that represents `value` in a message: NaN for None."""
    return math.nan if value is None else value


def to_optional(value: float) -> float | None:
    """Return the value that a number in a message represents: None for NaN."""
    return None if math.isnan(value) else value


def check_digest(value: object) -> None:
    """Raise ValueError unless `value` is a digest."""
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}", value):
        raise ValueError(f"digest is {value!r}; give {2 * DIGEST_BYTES} hexadecimal digits")


def pick(name: str, index: int, choices: Sequence[T]) -> T:
    """Return the choice with this index. Raise ValueError if there is none."""
    if index >= len(choices):
        raise ValueError(f"{name} has code {index}; known are 0 to {len(choices) - 1}")
    return choices[index]

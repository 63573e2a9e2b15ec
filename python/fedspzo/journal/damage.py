"""What is known of a damaged journal: where it is damaged, and how much that costs.

Each checksum continues the one before it, and both are in the file. So the records behind a damaged
one are found by their checksums, although no weights can be made of them.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass

from fedspzo.errors import one_line

HEADER, ROUND, TERMS, EVALUATION, ROUNDS = 1, 2, 3, 4, 5
"""Kinds of records."""

HEAD = struct.Struct("<IBI")  # size of the body in bytes, kind, checksum of these two
CHECKSUM = struct.Struct("<I")
OVERHEAD = HEAD.size + CHECKSUM.size
"""Size of a record without its body, in bytes."""

SEARCHED = 2**22
"""Number of bytes behind a damaged record in which the next whole one is looked for."""
SECTOR = 512
"""Number of bytes that a disk writes as a whole."""

_COUNT = struct.Struct("<II")  # first round, rounds: the start of a record of kind ROUNDS


class JournalWarning(UserWarning):
    """Says that a journal is damaged, and that only the records before the damage are used."""


@dataclass(frozen=True)
class Damage:
    """Tells where a journal is damaged.

    Attributes:
        number: the number of records before the damaged one.
        offset: the offset of its first byte.
        reason: what is wrong with it.
        kept: the number of rounds before it, which its checksums vouch for.
        behind: the number of rounds in whole records behind it. They build on the damaged one, so
            no weights can be made of them. None: no whole record was found there.
    """

    number: int
    offset: int
    reason: str
    kept: int
    behind: int | None

    def __str__(self) -> str:
        behind = "all that follows" if self.behind is None else f"the {self.behind} rounds after it"
        return (
            f"record {self.number} at byte {self.offset} is damaged: {one_line(self.reason)}; the"
            f" {self.kept} rounds before it hold, and it and {behind} are lost"
        )


def rounds_in(kind: int, body: bytes) -> int:
    """Return the number of rounds in a record."""
    if kind == ROUNDS:
        return int(_COUNT.unpack_from(body)[1]) if len(body) >= _COUNT.size else 0
    return int(kind in (ROUND, TERMS))


def rounds_behind(data: bytes) -> int | None:
    """Count the rounds in the whole records behind a damaged one.

    Args:
        data: the file from the damaged record on.

    Returns:
        Their number. None: no whole record was found.
    """
    at = _next_record(data)
    if at is None:
        return None
    count = 0
    while (size := _size(data, at)) is not None:
        kind, body = data[at + 4], data[at + HEAD.size : at + size - CHECKSUM.size]
        head = zlib.crc32(data[at : at + 5], _checksum(data, at - CHECKSUM.size))
        if zlib.crc32(body, head) != _checksum(data, at + size - CHECKSUM.size):
            break
        count += rounds_in(kind, body)
        at += size
    return count


def never_written(data: bytes, offset: int) -> bool:
    """Tell whether a record at a file's end looks as a power cut leaves it: a sector is all zeros.

    A disk may write the sectors of a record in any order until the record is synced.

    Args:
        data: the file from the record on.
        offset: the record's offset in the file.
    """
    cuts = [0, *range(-offset % SECTOR or SECTOR, len(data), SECTOR), len(data)]
    lost = any(not any(data[start:end]) for start, end in itertools.pairwise(cuts))
    return lost and len(cuts) > 2 and _next_record(data) is None


def _next_record(data: bytes) -> int | None:
    """Return the place of the first whole head behind the record at the start of `data`."""
    for at in range(OVERHEAD, min(len(data), SEARCHED) - OVERHEAD + 1):
        if _size(data, at) is not None:
            return at
    return None


def _size(data: bytes, at: int) -> int | None:
    """Return the size of the record at a place if its head is whole and the file holds it."""
    if len(data) - at < OVERHEAD or not ROUND <= data[at + 4] <= ROUNDS:
        return None
    length, _, check = HEAD.unpack_from(data, at)
    size = OVERHEAD + int(length)
    chain = _checksum(data, at - CHECKSUM.size)
    if size > len(data) - at or zlib.crc32(data[at : at + 5], chain) != check:
        return None
    return size


def _checksum(data: bytes, at: int) -> int:
    return int(CHECKSUM.unpack_from(data, at)[0])

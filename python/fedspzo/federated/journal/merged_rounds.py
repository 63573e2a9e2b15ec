"""Merged rounds: a compacted journal's record, of many rounds without their reports."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedspzo.byte_reader import Reader
from fedspzo.federated.protocol.updates import Scalars, Update
from fedspzo.journal.records import DIGEST_BYTES

BODY_BYTES = 2**16
"""Largest body of a record of several rounds, in bytes. A reader holds a record in memory."""

_HEAD = struct.Struct(f"<II{DIGEST_BYTES}s")  # first round, rounds, digest after the last
_COUNT = struct.Struct("<H")  # clients of a round
_CLIENT = struct.Struct("<I")


@dataclass(frozen=True)
class MergedRounds:
    """The updates of consecutive rounds of a run. They stay apart, and are not added up.

    Attributes:
        updates: one for each round.
        digest: digest of the weights after the last round. Those in between are not kept.

    Raises:
        ValueError: there is no round, or the rounds are not consecutive.
    """

    updates: tuple[Update, ...]
    digest: str

    def __post_init__(self) -> None:
        numbers = [update.round for update in self.updates]
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise ValueError(f"updates are of rounds {numbers[:9]}; give consecutive ones")

    @property
    def terms(self) -> int:
        """Number of terms that the rounds added."""
        return sum(update.terms for update in self.updates)

    @property
    def size(self) -> int:
        """Bytes of the record's body."""
        return _HEAD.size + sum(map(update_bytes, self.updates))

    def changes(self) -> Iterator[tuple[Update, str | None]]:
        """Yield each round's update, with the digest of the weights after it, or None."""
        for update in self.updates[:-1]:
            yield update, None
        yield self.updates[-1], self.digest

    def encode(self) -> bytes:
        """Return the body of a record of kind 5 (docs/journal.md)."""
        head = _HEAD.pack(self.updates[0].round, len(self.updates), bytes.fromhex(self.digest))
        return head + b"".join(
            _COUNT.pack(len(update.entries))
            + b"".join(
                _CLIENT.pack(client) + scalars.encode_steps() for client, scalars in update.entries
            )
            for update in self.updates
        )

    @classmethod
    def decode(cls, body: bytes, local_steps: int, directions: int) -> MergedRounds:
        """Decode the body of a record of kind 5.

        Args:
            body: the body.
            local_steps: the run's number of local steps in a round.
            directions: number of directions in a step, of all blocks.

        Raises:
            ValueError: the bytes are invalid, or more than `BODY_BYTES` for several rounds.
        """
        reader = Reader(body)
        first, count, digest = reader.take(_HEAD)
        if count > 1 and len(body) > BODY_BYTES:
            raise ValueError(f"{count} rounds are {len(body)} bytes; at most {BODY_BYTES} are read")
        updates = []
        for number in range(first, first + count):
            clients = (reader.take(_CLIENT)[0] for _ in range(reader.take(_COUNT)[0]))
            entries = tuple(
                (client, Scalars.decode_steps(reader, local_steps, directions))
                for client in clients
            )
            updates.append(Update(number, entries))
        reader.finish()
        return cls(tuple(updates), digest.hex())


def update_bytes(update: Update) -> int:
    """Return the bytes that a round takes in a record of kind 5."""
    return _COUNT.size + sum(
        _CLIENT.size + (scalars.local_steps + 7) // 8 + scalars.values.nbytes
        for _, scalars in update.entries
    )


def merge(parts: Iterable[MergedRounds]) -> Iterator[MergedRounds]:
    """Merge parts into records of at most `BODY_BYTES`, unless one part alone is larger.

    Parts are not divided, as only their ends have digests. Merging records again changes nothing,
    as no two neighbours fit into one.

    Args:
        parts: consecutive rounds, in order.
    """
    waiting: list[Update] = []
    size, digest = 0, ""
    for part in parts:
        more = part.size - _HEAD.size
        if waiting and size + more > BODY_BYTES:
            yield MergedRounds(tuple(waiting), digest)
            waiting = []
        size = more + (size if waiting else _HEAD.size)
        waiting += part.updates
        digest = part.digest
    if waiting:
        yield MergedRounds(tuple(waiting), digest)

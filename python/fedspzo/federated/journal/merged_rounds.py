"""Rounds without their reports: what a compacted journal keeps of them, many in one record."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedspzo.byte_reader import Reader
from fedspzo.federated.protocol.updates import Scalars, Update
from fedspzo.journal.records import DIGEST_BYTES

BODY_BYTES = 2**16
"""What a record's body may take, unless it is of one round: a reader holds a record in memory."""

_HEAD = struct.Struct(f"<II{DIGEST_BYTES}s")  # first round, rounds, digest after the last
_COUNT = struct.Struct("<H")  # clients of a round
_CLIENT = struct.Struct("<I")


@dataclass(frozen=True)
class MergedRounds:
    """Consecutive rounds of a run, each with what it added. None is summed up with another.

    Attributes:
        updates: one a round.
        digest: of the weights after the last one; those in between are not kept.

    Raises:
        ValueError: there is no round, or they are not consecutive.
    """

    updates: tuple[Update, ...]
    digest: str

    def __post_init__(self) -> None:
        numbers = [update.round for update in self.updates]
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise ValueError(f"updates are of rounds {numbers[:9]}; give consecutive ones")

    @property
    def terms(self) -> int:
        """How many terms they added."""
        return sum(update.terms for update in self.updates)

    @property
    def size(self) -> int:
        """Bytes of the body, if it were a record of its own."""
        return _HEAD.size + sum(map(update_bytes, self.updates))

    def changes(self) -> Iterator[tuple[Update, str | None]]:
        """Each round's update, and the digest of the weights after it where it is kept."""
        for update in self.updates[:-1]:
            yield update, None
        yield self.updates[-1], self.digest

    def encode(self) -> bytes:
        """The body of a record of kind 5 (docs/journal.md)."""
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
        """The rounds these bytes hold.

        Args:
            body: of a record of kind 5.
            local_steps: steps in a round of the run.
            directions: of a step, in all blocks.

        Raises:
            ValueError: the bytes hold no such rounds, or more than one reads at a time.
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
    """What a round takes in a record of kind 5."""
    return _COUNT.size + sum(
        _CLIENT.size + (scalars.local_steps + 7) // 8 + scalars.values.nbytes
        for _, scalars in update.entries
    )


def merge(parts: Iterable[MergedRounds]) -> Iterator[MergedRounds]:
    """As few records as `BODY_BYTES` allows, each of whole parts, as only their ends have digests.

    Merging what was merged changes nothing: a part and the next one's first round were too many
    bytes.

    Args:
        parts: of consecutive rounds.
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

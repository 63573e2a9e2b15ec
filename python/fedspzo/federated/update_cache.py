"""The update cache: it keeps the updates that are cheaper to send than a download."""

from __future__ import annotations

from collections import deque

from fedspzo.federated.protocol.updates import Update


class UpdateCache:
    """Keeps the latest updates, of `limit` bytes in all at most.

    So its size depends on neither the number of rounds nor that of clients. A client that has
    missed an older update downloads the weights, which takes fewer bytes then.

    Args:
        limit: bytes of a download.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._updates: deque[Update] = deque()
        self._bytes = 0

    @property
    def updates(self) -> tuple[Update, ...]:
        """The updates that are kept. They are of consecutive rounds."""
        return tuple(self._updates)

    def append(self, update: Update) -> None:
        """Add the next round's update, and drop the oldest ones beyond the limit."""
        self._updates.append(update)
        self._bytes += len(update.encode())
        while self._bytes > self.limit:
            self._bytes -= len(self._updates.popleft().encode())

    def last(self, count: int) -> tuple[Update, ...] | None:
        """Return the last `count` updates, or None if they are not kept."""
        if count > len(self._updates):
            return None
        return self.updates[len(self._updates) - count :]

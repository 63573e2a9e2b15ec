"""The updates a server keeps for clients that missed them: at most as many as a download costs."""

from __future__ import annotations

from collections import deque

from fedspzo.federated.protocol.updates import Update


class UpdateCache:
    """The latest updates, as long as sending all of them is no dearer than `limit` bytes.

    So its size depends on neither the number of rounds nor that of clients. Who has missed an
    older one downloads the weights, which is then the cheaper way.

    Args:
        limit: bytes of a download.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._updates: deque[Update] = deque()
        self._bytes = 0

    @property
    def updates(self) -> tuple[Update, ...]:
        """Those kept, of consecutive rounds."""
        return tuple(self._updates)

    def append(self, update: Update) -> None:
        """Add the next round's update, and forget the oldest beyond the limit."""
        self._updates.append(update)
        self._bytes += len(update.encode())
        while self._bytes > self.limit:
            self._bytes -= len(self._updates.popleft().encode())

    def last(self, count: int) -> tuple[Update, ...] | None:
        """The last `count` updates; None where they cost more than a download."""
        if count > len(self._updates):
            return None
        return self.updates[len(self._updates) - count :]

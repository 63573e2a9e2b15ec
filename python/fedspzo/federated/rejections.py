"""Rejections: a client without a usable report is named with the reason, and the round goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.federated.protocol.messages import Report

REASON_BYTES = 200
"""Longest reason, in bytes of UTF-8. A longer one is cut."""

NO_FINITE_LOSS = "none of its steps had a finite loss, so it has no share in the update"
"""The reason for a client that skipped each step of a round."""

FIRST = 4
"""Number of a client's rejections in a round that are kept. One more tells how many others came."""

_SHOWN = 6


@dataclass(frozen=True)
class Rejection:
    """A client whose report was not used, or did not come.

    Attributes:
        client: the client's id.
        reason: the reason, in one line; it is cut to `REASON_BYTES`.
    """

    client: int
    reason: str

    def __post_init__(self) -> None:
        line = " ".join(self.reason.split()).encode("utf-8", "replace")[:REASON_BYTES]
        object.__setattr__(self, "reason", line.decode("utf-8", "ignore"))

    def __str__(self) -> str:
        return f"client {self.client}: {self.reason}"


def first_ones(rejected: Sequence[Rejection], unread: Mapping[int, int]) -> tuple[Rejection, ...]:
    """Return the first `FIRST` rejections of each client, and one that counts its others.

    So what a client costs in the log and the journal has a bound, whatever it sends.

    Args:
        rejected: a round's rejections.
        unread: number of messages of each client that were not even read.
    """
    seen: Counter[int] = Counter()
    kept = []
    for rejection in rejected:
        seen[rejection.client] += 1
        if seen[rejection.client] <= FIRST:
            kept.append(rejection)
    more = {client: max(0, n - FIRST) + unread.get(client, 0) for client, n in seen.items()}
    kept += [Rejection(client, f"and {n} more like these") for client, n in more.items() if n]
    return tuple(kept)


class DigestError(RuntimeError):
    """Raised where weights that should be equal have different digests."""


class QuorumError(RuntimeError):
    """Raised where too few clients reported. The server has not changed.

    Attributes:
        round: the round, from 0.
        accepted: the reports that can be used.
        rejected: the other clients of the round, each with the reason.
    """

    def __init__(
        self,
        round: int,
        accepted: Sequence[Report],
        rejected: Sequence[Rejection],
        *,
        asked: int,
        needed: int,
    ) -> None:
        reasons = [str(rejection) for rejection in rejected[-_SHOWN:]]
        if len(rejected) > _SHOWN:
            reasons.insert(0, f"({len(rejected) - _SHOWN} earlier ones)")
        super().__init__(
            f"round {round}: {len(accepted)} of {asked} clients reported, {needed} are needed; "
            + "; ".join(reasons)
        )
        self.round = round
        self.accepted = tuple(accepted)
        self.rejected = tuple(rejected)

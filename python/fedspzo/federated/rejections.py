"""What becomes of a client that does not report as it should: named, with the reason, not fatal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.federated.protocol.messages import Report

REASON_BYTES = 200
"""A longer reason is cut."""

_SHOWN = 6


@dataclass(frozen=True)
class Rejection:
    """A report that was not used, or did not come.

    Attributes:
        client: whose.
        reason: why, in one line; cut to `REASON_BYTES` of UTF-8.
    """

    client: int
    reason: str

    def __post_init__(self) -> None:
        line = " ".join(self.reason.split()).encode("utf-8", "replace")[:REASON_BYTES]
        object.__setattr__(self, "reason", line.decode("utf-8", "ignore"))

    def __str__(self) -> str:
        return f"client {self.client}: {self.reason}"


class QuorumError(RuntimeError):
    """Too few clients reported; nothing has changed.

    Attributes:
        round: the round, from 0.
        accepted: the reports that can be used.
        rejected: who else was asked, and why they do not count.
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

"""The contents of a run's journal: rounds, with their reports and updates, and evaluations."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fedspzo.byte_reader import Reader
from fedspzo.checks import LIMIT_64, check_whole
from fedspzo.federated.protocol.framing import from_optional, to_optional
from fedspzo.federated.protocol.messages import Report
from fedspzo.federated.protocol.updates import Update
from fedspzo.federated.rejections import Rejection

_EVALUATION = struct.Struct("<dd")  # loss, accuracy


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The costs of the steps before the first round.

    Attributes:
        forwards: computation, in full forward passes.
        bytes_down: bytes sent to clients.
        bytes_up: bytes received from them.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    forwards: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.forwards, int | float) or not 0 <= self.forwards < math.inf:
            raise ValueError(f"forwards is {self.forwards!r}; give a finite number, at least 0")
        for name in ("bytes_down", "bytes_up"):
            check_whole(name, getattr(self, name), 0, LIMIT_64 - 1)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The evaluation of the weights after `round` rounds.

    Attributes:
        round: number of rounds done.
        loss: held-out loss. None: not measured.
        accuracy: held-out accuracy, in [0, 1]. None: not measured.
    """

    round: int
    loss: float | None
    accuracy: float | None

    def encode(self) -> bytes:
        """Return the bytes inside a record (docs/journal.md). The record's place gives `round`."""
        return _EVALUATION.pack(from_optional(self.loss), from_optional(self.accuracy))

    @classmethod
    def decode(cls, reader: Reader, number: int) -> EvaluationResult:
        """Decode the evaluation that comes next in a record. Raise ValueError if it is cut short.

        Args:
            reader: stands at the evaluation.
            number: number of rounds done.
        """
        loss, accuracy = map(to_optional, reader.take(_EVALUATION))
        return cls(round=number, loss=loss, accuracy=accuracy)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a run.

    Attributes:
        reports: the accepted reports, ascending by client.
        rejected: the reports that were not used, or did not come. A client that was asked again
            may also be in `reports`.
        downloads: the clients that were sent the weights in place of updates, ascending.
        update: the update that was added to the weights.
        digest: digest of the weights after the round.
        bytes_down: bytes of the plans and downloads.
        bytes_up: bytes of all messages from clients.
        seconds: time from the run's start to the round's end, a float32.
        lr: the learning rates of its steps, one for each block.
        evaluation: the evaluation of the weights that the round started from. None: not evaluated.

    Raises:
        ValueError: a value is out of range, or does not fit another; the message names it.
    """

    reports: tuple[Report, ...]
    rejected: tuple[Rejection, ...] = ()
    downloads: tuple[int, ...] = ()
    update: Update
    digest: str
    bytes_down: int
    bytes_up: int
    seconds: float
    lr: tuple[float, ...]
    evaluation: EvaluationResult | None = None

    def __post_init__(self) -> None:
        for name, value in (("bytes_down", self.bytes_down), ("bytes_up", self.bytes_up)):
            check_whole(name, value, 0, LIMIT_64 - 1)
        reporting = [report.client for report in self.reports]
        if reporting != sorted(set(reporting)):
            raise ValueError(f"reports are of clients {reporting}; give each once, ascending")
        if not set(self.downloads) <= set(self.clients):
            raise ValueError(f"downloads names clients {self.downloads}; asked were {self.clients}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds}; give a finite number, at least 0")

    @property
    def round(self) -> int:
        """The round's number, from 0."""
        return self.update.round

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """The clients that were sent a plan, ascending. Each reported or was rejected."""
        asked = {report.client for report in self.reports}
        return tuple(sorted(asked | {rejection.client for rejection in self.rejected}))

    @property
    def terms(self) -> int:
        """Number of terms that the round added."""
        return self.update.terms

    def changes(self) -> Iterator[tuple[Update, str | None]]:
        """Yield the update, with the digest after it, as `MergedRounds.changes` does."""
        yield self.update, self.digest

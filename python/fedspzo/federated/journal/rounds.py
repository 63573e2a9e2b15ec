"""What a run's journal is made of: rounds, each with what was reported and added; evaluations."""

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
class EvaluationResult:
    """What the weights after `round` rounds were measured to be; None: not measured."""

    round: int
    loss: float | None
    accuracy: float | None

    def encode(self) -> bytes:
        """The bytes inside a record (docs/journal.md); which rounds were done, its place tells."""
        return _EVALUATION.pack(from_optional(self.loss), from_optional(self.accuracy))

    @classmethod
    def decode(cls, reader: Reader, number: int) -> EvaluationResult:
        """The evaluation after so many rounds that comes next; ValueError if there is none."""
        loss, accuracy = map(to_optional, reader.take(_EVALUATION))
        return cls(round=number, loss=loss, accuracy=accuracy)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a run.

    Attributes:
        reports: those accepted, by client.
        rejected: the others, and those that did not come; a client that was asked again may be in
            both.
        downloads: the clients that were sent the weights in place of updates, ascending.
        update: what was added to the weights.
        digest: of the weights afterwards.
        bytes_down: of the round's plans, as encoded.
        bytes_up: of its reports, as encoded.
        seconds: since the run's start, in which the round was done; a float32.
        lr: the learning rates of its steps, one a block.
        evaluation: of the weights that it started from, where it is in this round's record.
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
        """Its number, from 0."""
        return self.update.round

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """Those that were sent a plan, ascending: each of them reported or was rejected."""
        asked = {report.client for report in self.reports}
        return tuple(sorted(asked | {rejection.client for rejection in self.rejected}))

    @property
    def terms(self) -> int:
        """How many terms it added."""
        return self.update.terms

    def changes(self) -> Iterator[tuple[Update, str | None]]:
        """Its update, and the digest afterwards: as `MergedRounds.changes`, of one round."""
        yield self.update, self.digest

"""A round as a journal keeps it: whom it asked, what they reported, what was added, the digest."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fedspzo.journal import DIGEST_BYTES
from fedspzo.reader import Reader

from .messages import Report
from .rejections import Rejection
from .settings import LIMIT_16, LIMIT_64, check_whole
from .updates import Scalars, Update
from .wire import from_optional, to_optional

_ROUND = struct.Struct(
    f"<{DIGEST_BYTES}sdQQHH"
)  # digest, seconds, bytes down, up, clients, reports
_CLIENT = struct.Struct("<I")
_REPORT = struct.Struct("<IIff")  # client, examples, loss, forwards
_UNUSUAL = struct.Struct("<HI")  # downloads, rejections: there are some, or this is left out
_REJECTION = struct.Struct("<IH")  # client, bytes of the reason
_EVALUATION = struct.Struct("<Idd")  # round, loss, accuracy


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a run.

    Attributes:
        clients: those that were sent a plan, ascending.
        reports: those accepted, by client.
        rejected: the others, and those that did not come; a client that was asked again may be in
            both.
        downloads: the clients that were sent the weights in place of updates, ascending.
        update: what was added to the weights.
        digest: of the weights afterwards.
        bytes_down: of the round's plans, as encoded.
        bytes_up: of its reports, as encoded.
        seconds: since the run's start, in which the round was done.
    """

    clients: tuple[int, ...]
    reports: tuple[Report, ...]
    rejected: tuple[Rejection, ...] = ()
    downloads: tuple[int, ...] = ()
    update: Update
    digest: str
    bytes_down: int
    bytes_up: int
    seconds: float

    def __post_init__(self) -> None:
        for name, value in (("bytes_down", self.bytes_down), ("bytes_up", self.bytes_up)):
            check_whole(name, value, 0, LIMIT_64 - 1)
        if list(self.clients) != sorted(set(self.clients)) or len(self.clients) >= LIMIT_16:
            raise ValueError(f"clients is {self.clients}; give each once, ascending")
        reporting = [report.client for report in self.reports]
        if len(set(reporting)) != len(reporting) or not set(reporting) <= set(self.clients):
            raise ValueError(f"reports are of clients {reporting}; the plan asked {self.clients}")
        for name, others in (
            ("rejected", {rejection.client for rejection in self.rejected}),
            ("downloads", set(self.downloads)),
        ):
            if not others <= set(self.clients):
                raise ValueError(f"{name} names clients {others}; the plan asked {self.clients}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds}; give a finite number, at least 0")

    @property
    def round(self) -> int:
        """Its number, from 0."""
        return self.update.round

    @property
    def terms(self) -> int:
        """How many terms it added."""
        return self.update.terms

    def changes(self) -> Iterator[tuple[Update, str | None]]:
        """Its update, and the digest afterwards: as `MergedRounds.changes`, of one round."""
        yield self.update, self.digest

    def encode(self) -> bytes:
        """The body of a record of kind 2 (docs/journal.md)."""
        head = _ROUND.pack(
            bytes.fromhex(self.digest),
            self.seconds,
            self.bytes_down,
            self.bytes_up,
            len(self.clients),
            len(self.reports),
        )
        reports = (
            _REPORT.pack(r.client, r.examples, from_optional(r.loss), r.forwards)
            + r.gradients.encode()
            for r in self.reports
        )
        asked = b"".join(map(_CLIENT.pack, self.clients))
        return self.update.encode() + head + asked + b"".join(reports) + self._unusual()

    def _unusual(self) -> bytes:
        if not self.downloads and not self.rejected:
            return b""
        body = _UNUSUAL.pack(len(self.downloads), len(self.rejected))
        body += b"".join(map(_CLIENT.pack, self.downloads))
        for rejection in self.rejected:
            reason = rejection.reason.encode()
            body += _REJECTION.pack(rejection.client, len(reason)) + reason
        return body

    @classmethod
    def decode(cls, body: bytes, before: str) -> Round:
        """The round these bytes hold.

        Args:
            body: of a record of kind 2.
            before: the digest of the weights that the round started from, and that every report
                therefore had.

        Raises:
            ValueError: the bytes hold no round.
        """
        reader = Reader(body)
        update = Update.decode(reader)
        digest, seconds, down, up, asked, reported = reader.take(_ROUND)
        clients = tuple(reader.take(_CLIENT)[0] for _ in range(asked))
        reports = tuple(_report(reader, update.round, before) for _ in range(reported))
        loaded, failed = reader.take(_UNUSUAL) if reader.left else (0, 0)
        downloads = tuple(reader.take(_CLIENT)[0] for _ in range(loaded))
        rejected = tuple(_rejection(reader) for _ in range(failed))
        reader.finish()
        return cls(
            clients=clients,
            reports=reports,
            rejected=rejected,
            downloads=downloads,
            update=update,
            digest=digest.hex(),
            bytes_down=down,
            bytes_up=up,
            seconds=seconds,
        )


def _report(reader: Reader, round: int, digest: str) -> Report:
    client, examples, loss, forwards = reader.take(_REPORT)
    return Report(
        round=round,
        client=client,
        digest=digest,
        examples=examples,
        gradients=Scalars.decode(reader),
        loss=to_optional(loss),
        forwards=forwards,
    )


def _rejection(reader: Reader) -> Rejection:
    client, length = reader.take(_REJECTION)
    return Rejection(client, reader.read(length).decode())


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the weights after `round` rounds were measured to be; None: not measured."""

    round: int
    loss: float | None
    accuracy: float | None

    def encode(self) -> bytes:
        """The body of a record of kind 4 (docs/journal.md)."""
        return _EVALUATION.pack(self.round, from_optional(self.loss), from_optional(self.accuracy))

    @classmethod
    def decode(cls, body: bytes) -> Evaluation:
        """The evaluation these bytes hold; ValueError if they hold none."""
        reader = Reader(body)
        number, loss, accuracy = reader.take(_EVALUATION)
        reader.finish()
        return cls(round=number, loss=to_optional(loss), accuracy=to_optional(accuracy))

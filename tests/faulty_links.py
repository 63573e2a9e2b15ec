"""Ways to the clients on which messages are lost, late, doubled, damaged or forged."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from fedspzo.federated import Link, Plan, Report
from fedspzo.federated.protocol.updates import Scalars

Answer = Callable[[Report, list[Report]], list[bytes]]
"""What arrives, of a client's report now and those it made before."""


@dataclass
class Faulty:
    """Passes on what `answer` makes of the reports of some clients in some rounds."""

    link: Link
    clients: tuple[int, ...]
    rounds: range
    answer: Answer

    def __post_init__(self) -> None:
        self.past: dict[int, list[Report]] = {}

    def exchange(self, client: int, plan: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        (data,) = self.link.exchange(client, plan, weights)
        past = self.past.setdefault(client, [])
        report = Report.decode(data)
        past.append(report)
        if client not in self.clients or Plan.decode(plan).round not in self.rounds:
            return [data]
        return self.answer(report, past[:-1])


def scaled(report: Report, factor: float) -> bytes:
    g = report.gradients
    values = (g.values.astype(np.float64) * factor).astype(np.float32)
    return replace(report, gradients=Scalars(g.local_steps, g.steps, values)).encode()


def forged(report: Report, value: float) -> bytes:
    """The first scalar is another number, and the checksum fits."""
    data = bytearray(report.encode()[:-4])
    struct.pack_into("<f", data, len(data) - 4 * report.gradients.values.size, value)
    return bytes(data) + struct.pack("<I", zlib.crc32(data))


def flipped(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


def raises(error: Exception) -> Answer:
    def answer(report: Report, past: list[Report]) -> list[bytes]:
        raise error

    return answer


def changed(**changes: object) -> Answer:
    return lambda report, past: [replace(report, **changes).encode()]  # type: ignore[arg-type]


def reshaped(steps: int | None = None, directions: int | None = None) -> Answer:
    def answer(report: Report, past: list[Report]) -> list[bytes]:
        g = report.gradients
        kept = g.values[:steps, :directions].copy()
        less = Scalars(steps or g.local_steps, g.steps[: len(kept)], kept)
        return [replace(report, gradients=less).encode()]

    return answer


LOST: dict[str, tuple[Answer, str]] = {
    "time out": (raises(TimeoutError("no answer in 60 s")), "TimeoutError: no answer in 60 s"),
    "vanish": (raises(ConnectionResetError("connection reset")), "ConnectionResetError: conn"),
    "fail": (raises(ZeroDivisionError("a bug")), "ZeroDivisionError: a bug"),
    "silent": (lambda report, past: [], "no report came"),
    "late": (lambda report, past: [past[0].encode()], "report is for round 0, this is round 2"),
    "early": (changed(round=9), "report is for round 9, this is round 2"),
    "other client": (changed(client=0), "its report says it is of client 0"),
    "digest": (changed(digest="0" * 32), "weights have digest 0000.* those of round 2"),
    "short": (lambda report, past: [report.encode()[:-9]], "send it whole"),
    "empty": (lambda report, past: [b""], "0 bytes, too few"),
    "flipped bit": (lambda report, past: [flipped(report.encode())], "checksum is"),
    "fewer steps": (reshaped(steps=1), r"\(1, 5\); the plan asks for \(2, 5\)"),
    "fewer directions": (reshaped(directions=4), r"\(2, 4\); the plan asks for \(2, 5\)"),
    "nan": (lambda report, past: [forged(report, np.nan)], r"values\[0, 0\] is nan"),
    "inf": (lambda report, past: [forged(report, np.inf)], r"values\[0, 0\] is inf"),
}
"""Faults after which a report does not count, and the reason that is logged."""

HARMLESS: dict[str, tuple[Answer, str]] = {
    "twice": (lambda report, past: [report.encode()] * 2, "came twice; the first one counts"),
    "twice, then other": (
        lambda report, past: [report.encode(), scaled(report, -9)],
        "came twice; the first one counts",
    ),
    "late one first": (
        lambda report, past: [past[0].encode(), report.encode()],
        "report is for round 0, this is round 2",
    ),
    "garbage first": (lambda report, past: [b"PK\3\4" * 9, report.encode()], "not b'FSPZ'"),
}
"""Faults that cost nothing but a line in the log."""

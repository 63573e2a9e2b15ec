"""Encodes a round as a journal's record (docs/journal.md), without values that can be derived.

A reader derives these from the header, the records before and this one: the round's number, the
terms' seeds, the clients asked, and the coefficients. The coefficients are written if a report was
clipped, or the aggregation rule is not the mean.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from enum import IntFlag

from fedspzo.byte_reader import Reader, encode_whole
from fedspzo.federated.coefficients import weighted_mean
from fedspzo.federated.protocol.framing import from_optional, to_optional
from fedspzo.federated.protocol.messages import Report
from fedspzo.federated.protocol.updates import Scalars, Update
from fedspzo.federated.rejections import Rejection
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.journal.records import DIGEST_BYTES

from .rounds import EvaluationResult, Round

_FLOAT = struct.Struct("<f")
_RATE = struct.Struct("<d")
_FLAGS = struct.Struct("<B")


class _Flag(IntFlag):
    """Tells the parts that a record leaves out, or has in addition."""

    ALL_STEPS = 1
    SAME_FORWARDS = 2
    WEIGHTED_MEAN = 4
    DOWNLOADS_OR_REJECTIONS = 8
    ALL_CLIENTS = 16
    EVALUATED = 32
    OTHER_RATES = 64


_KNOWN = range(2 * _Flag.OTHER_RATES)


def encode(done: Round, federation: FederationConfig, optimizer: OptimizerConfig) -> bytes:
    """Return the body of a record of kind 2.

    Args:
        done: the round.
        federation: the run's settings in the journal's header.
        optimizer: the step's settings in the journal's header, resolved.
    """
    other_rates = done.lr != optimizer.learning_rates
    optimizer = replace(optimizer, lr=done.lr)
    reports, update = done.reports, done.update
    every = all(len(r.gradients.steps) == federation.local_steps for r in reports)
    forwards = [_FLOAT.pack(r.forwards) for r in reports]
    alike = len(set(forwards)) == 1
    follows = update == Update(update.round, weighted_mean(reports, federation, optimizer))
    unusual = bool(done.downloads or done.rejected)
    everybody = len(reports) == federation.clients
    flags = every * _Flag.ALL_STEPS | alike * _Flag.SAME_FORWARDS | follows * _Flag.WEIGHTED_MEAN
    flags |= unusual * _Flag.DOWNLOADS_OR_REJECTIONS | everybody * _Flag.ALL_CLIENTS
    flags |= (done.evaluation is not None) * _Flag.EVALUATED | other_rates * _Flag.OTHER_RATES
    parts = [bytes.fromhex(done.digest), _FLOAT.pack(done.seconds)]
    parts += [encode_whole(done.bytes_down), encode_whole(done.bytes_up), _FLAGS.pack(flags)]
    if other_rates:
        parts += map(_RATE.pack, done.lr)
    parts += [b"" if everybody else encode_whole(len(reports)), *forwards[:alike]]
    for report, cost in zip(reports, forwards, strict=True):
        parts += [b"" if everybody else encode_whole(report.client), encode_whole(report.examples)]
        parts += [_FLOAT.pack(from_optional(report.loss)), b"" if alike else cost]
        parts.append(report.gradients.encode_steps(every=every))
    if not follows:
        parts.append(encode_whole(len(update.entries)))
        for client, scalars in update.entries:
            parts += [encode_whole(client), scalars.encode_steps()]
    if unusual:
        parts += [encode_whole(len(done.downloads)), *map(encode_whole, done.downloads)]
        parts.append(encode_whole(len(done.rejected)))
        for rejection in done.rejected:
            reason = rejection.reason.encode()
            parts += [encode_whole(rejection.client), encode_whole(len(reason)), reason]
    if done.evaluation is not None:
        parts.append(done.evaluation.encode())
    return b"".join(parts)


def decode(
    body: bytes, number: int, before: str, federation: FederationConfig, optimizer: OptimizerConfig
) -> Round:
    """Decode the body of a record of kind 2.

    Args:
        body: the body.
        number: the round, from 0. It is the number of rounds before it.
        before: digest of the weights that the round started from, which every report has.
        federation: the run's settings in the journal's header.
        optimizer: the step's settings in the journal's header, resolved.

    Raises:
        ValueError: the bytes are not a valid round.
    """
    reader = Reader(body)
    shape = federation.local_steps, sum(optimizer.directions)
    digest = reader.read(DIGEST_BYTES).hex()
    (seconds,) = reader.take(_FLOAT)
    down, up, (flags,) = reader.whole(), reader.whole(), reader.take(_FLAGS)
    if flags not in _KNOWN:
        raise ValueError(f"flags is {flags}; known are those below {len(_KNOWN)}")
    if flags & _Flag.OTHER_RATES:
        rates = tuple(reader.take(_RATE)[0] for _ in optimizer.directions)
        optimizer = replace(optimizer, lr=rates)
    everybody = bool(flags & _Flag.ALL_CLIENTS)
    count = federation.clients if everybody else reader.whole()
    common = reader.take(_FLOAT)[0] if flags & _Flag.SAME_FORWARDS else None
    reports: list[Report] = []
    for place in range(count):
        client = place if everybody else _client(reader, federation)
        examples = reader.whole()
        if reports and client <= reports[-1].client:
            raise ValueError(f"the report of client {client} is not in its place")
        (loss,) = reader.take(_FLOAT)
        forwards = reader.take(_FLOAT)[0] if common is None else common
        gradients = Scalars.decode_steps(reader, *shape, every=bool(flags & _Flag.ALL_STEPS))
        reports.append(
            Report(
                round=number,
                client=client,
                digest=before,
                examples=examples,
                gradients=gradients,
                loss=to_optional(loss),
                forwards=forwards,
            )
        )
    if flags & _Flag.WEIGHTED_MEAN:
        entries = weighted_mean(reports, federation, optimizer)
    else:
        entries = tuple(
            (reader.whole(), Scalars.decode_steps(reader, *shape)) for _ in range(reader.whole())
        )
    downloads: list[int] = []
    rejected: list[Rejection] = []
    if flags & _Flag.DOWNLOADS_OR_REJECTIONS:
        downloads += (_client(reader, federation) for _ in range(reader.whole()))
        rejected += (_rejection(reader, federation) for _ in range(reader.whole()))
    evaluation = EvaluationResult.decode(reader, number) if flags & _Flag.EVALUATED else None
    reader.finish()
    return Round(
        reports=tuple(reports),
        rejected=tuple(rejected),
        downloads=tuple(downloads),
        lr=optimizer.learning_rates,
        evaluation=evaluation,
        update=Update(number, entries),
        digest=digest,
        bytes_down=down,
        bytes_up=up,
        seconds=seconds,
    )


def _client(reader: Reader, federation: FederationConfig) -> int:
    client = reader.whole()
    if client >= federation.clients:
        raise ValueError(f"it names client {client}; the run has {federation.clients}")
    return client


def _rejection(reader: Reader, federation: FederationConfig) -> Rejection:
    client, length = _client(reader, federation), reader.whole()
    return Rejection(client, reader.read(length).decode())

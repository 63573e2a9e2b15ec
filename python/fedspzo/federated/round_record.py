"""A round as the bytes of a journal's record, docs/journal.md: nothing is written that follows.

What follows from the header and the record: the seeds of the terms, who was asked, and, unless
something was clipped or put together by another rule than the mean, the coefficients.
"""

from __future__ import annotations

import struct

from fedspzo.journal import DIGEST_BYTES
from fedspzo.reader import Reader, encode_whole

from .coefficients import averaged
from .messages import Report
from .rejections import Rejection
from .rounds import Round
from .settings import FederationConfig, OptimizerConfig
from .updates import Scalars, Update
from .wire import from_optional, to_optional

_FLOAT = struct.Struct("<f")
_FLAGS = struct.Struct("<B")
_ALL_STEPS, _ALIKE, _AVERAGED, _UNUSUAL = 1, 2, 4, 8


def encode(done: Round, federation: FederationConfig, optimizer: OptimizerConfig) -> bytes:
    """The body of a record of kind 2.

    Args:
        done: the round.
        federation: the run's settings, as they are in the journal's header.
        optimizer: likewise, resolved.
    """
    reports, update = done.reports, done.update
    every = all(len(r.gradients.steps) == federation.local_steps for r in reports)
    alike = len({r.forwards for r in reports}) == 1
    follows = update == Update(update.round, averaged(reports, federation, optimizer))
    unusual = bool(done.downloads or done.rejected)
    flags = every * _ALL_STEPS | alike * _ALIKE | follows * _AVERAGED | unusual * _UNUSUAL
    body = encode_whole(update.round) + bytes.fromhex(done.digest) + _FLOAT.pack(done.seconds)
    body += encode_whole(done.bytes_down) + encode_whole(done.bytes_up) + _FLAGS.pack(flags)
    body += encode_whole(len(reports))
    if alike:
        body += _FLOAT.pack(reports[0].forwards)
    for report in reports:
        body += encode_whole(report.client) + encode_whole(report.examples)
        body += _FLOAT.pack(from_optional(report.loss))
        body += b"" if alike else _FLOAT.pack(report.forwards)
        body += report.gradients.encode_steps(every=every)
    if not follows:
        body += encode_whole(len(update.entries))
        for client, scalars in update.entries:
            body += encode_whole(client) + scalars.encode_steps()
    return body + _encode_unusual(done) if unusual else body


def _encode_unusual(done: Round) -> bytes:
    body = encode_whole(len(done.downloads)) + b"".join(map(encode_whole, done.downloads))
    body += encode_whole(len(done.rejected))
    for rejection in done.rejected:
        reason = rejection.reason.encode()
        body += encode_whole(rejection.client) + encode_whole(len(reason)) + reason
    return body


def decode(
    body: bytes, before: str, federation: FederationConfig, optimizer: OptimizerConfig
) -> Round:
    """The round these bytes hold.

    Args:
        body: of a record of kind 2.
        before: the digest of the weights that the round started from, and that every report
            therefore had.
        federation, optimizer: as for `encode`.

    Raises:
        ValueError: the bytes hold no round.
    """
    reader = Reader(body)
    shape = federation.local_steps, sum(optimizer.directions)
    number, digest = reader.whole(), reader.read(DIGEST_BYTES).hex()
    (seconds,) = reader.take(_FLOAT)
    down, up, (flags,) = reader.whole(), reader.whole(), reader.take(_FLAGS)
    if flags >= 2 * _UNUSUAL:
        raise ValueError(f"flags is {flags}; known are those below {2 * _UNUSUAL}")
    reported = reader.whole()
    common = reader.take(_FLOAT)[0] if flags & _ALIKE else None
    reports = []
    for _ in range(reported):
        client, examples = reader.whole(), reader.whole()
        (loss,) = reader.take(_FLOAT)
        forwards = reader.take(_FLOAT)[0] if common is None else common
        gradients = Scalars.decode_steps(reader, *shape, every=bool(flags & _ALL_STEPS))
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
    if flags & _AVERAGED:
        entries = averaged(reports, federation, optimizer)
    else:
        entries = tuple(
            (reader.whole(), Scalars.decode_steps(reader, *shape)) for _ in range(reader.whole())
        )
    loaded = [reader.whole() for _ in range(reader.whole())] if flags & _UNUSUAL else []
    rejected = [_rejection(reader) for _ in range(reader.whole())] if flags & _UNUSUAL else []
    reader.finish()
    return Round(
        reports=tuple(reports),
        rejected=tuple(rejected),
        downloads=tuple(loaded),
        update=Update(number, entries),
        digest=digest,
        bytes_down=down,
        bytes_up=up,
        seconds=seconds,
    )


def _rejection(reader: Reader) -> Rejection:
    client, length = reader.whole(), reader.whole()
    return Rejection(client, reader.read(length).decode())

"""FedKSeed's two messages, in the frame of `fedspzo.federated.protocol.framing`."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedspzo.byte_reader import Reader
from fedspzo.federated.protocol.framing import frame, from_optional, to_optional, unframe
from fedspzo.journal.records import DIGEST_BYTES

from .pool import Singles

PAIR = np.dtype([("member", "<u4"), ("value", "<f4")])
"""A pair of a pool's member and a number, in 8 bytes."""

_PLAN, _REPORT = 101, 102
_PLAN_BODY = struct.Struct(f"<II{DIGEST_BYTES}sI?")  # round, client, digest, pairs, probabilities
_REPORT_BODY = struct.Struct("<IIffHI")  # round, client, loss, forwards, skipped steps, pairs
_ALL = 2**32 - 1  # stands for the number of pairs where all K coefficients follow


@dataclass(frozen=True, eq=False)
class PoolPlan:
    """Tells a client the global weights of a round.

    Attributes:
        round: the round, from 0.
        client: the client's id.
        digest: digest of the round's weights, 32 hexadecimal digits.
        coefficients: the global weights' coefficients along the pool, float32 (K,).
        probabilities: the members' probabilities, float32 (K,). Default None: uniform.
    """

    round: int
    client: int
    digest: str
    coefficients: Singles
    probabilities: Singles | None = None

    def encode(self, known: Singles) -> bytes:
        """Return the message for a client that knows the coefficients `known`, float32 (K,).

        It has pairs for the coefficients that differ or, if that is shorter, all K numbers.
        """
        changed = np.flatnonzero(self.coefficients != known)
        pairs = len(changed) * PAIR.itemsize < len(known) * 4
        head = (len(changed) if pairs else _ALL, self.probabilities is not None)
        new = as_pairs(changed, self.coefficients[changed]) if pairs else self.coefficients
        weights = b"" if self.probabilities is None else self.probabilities.tobytes()
        digest = bytes.fromhex(self.digest)
        body = _PLAN_BODY.pack(self.round, self.client, digest, *head) + new.tobytes() + weights
        return frame(_PLAN, body)

    @classmethod
    def decode(cls, data: bytes, known: Singles) -> PoolPlan:
        """Decode a message to a client that knows the coefficients `known`, float32 (K,).

        Raises:
            ValueError: the message is damaged, or names a member that the pool lacks.
        """
        reader = Reader(unframe(_PLAN, data))
        number, client, digest, count, weighted = reader.take(_PLAN_BODY)
        size = len(known)
        if count == _ALL:
            coefficients = np.frombuffer(reader.read(4 * size), "<f4").astype(np.float32)
        else:
            pairs = np.frombuffer(reader.read(PAIR.itemsize * count), PAIR)
            if (pairs["member"] >= size).any():
                raise ValueError(f"member is {pairs['member'].max()}; the pool has {size}")
            coefficients = known.copy()
            coefficients[pairs["member"]] = pairs["value"]
        weights = reader.read(4 * size) if weighted else None
        reader.finish()
        probabilities = None if weights is None else np.frombuffer(weights, "<f4")
        return cls(number, client, digest.hex(), coefficients, probabilities)


@dataclass(frozen=True, eq=False)
class PoolReport:
    """A client's answer to a plan.

    Attributes:
        round: the round, from 0.
        client: the client's id.
        loss: mean loss of the steps taken. None: no step was taken.
        forwards: computation, in full forward passes.
        skipped: number of steps that were skipped, as their losses were not finite.
        gradients: each step's member and projected gradient, PAIR (steps taken,).
    """

    round: int
    client: int
    loss: float | None
    forwards: float
    skipped: int
    gradients: npt.NDArray[np.void]

    def encode(self) -> bytes:
        """Return the message."""
        head = (self.round, self.client, from_optional(self.loss), self.forwards, self.skipped)
        body = _REPORT_BODY.pack(*head, len(self.gradients)) + self.gradients.tobytes()
        return frame(_REPORT, body)

    @classmethod
    def decode(cls, data: bytes) -> PoolReport:
        """Decode a message. Raise ValueError if it is damaged."""
        reader = Reader(unframe(_REPORT, data))
        number, client, loss, forwards, skipped, count = reader.take(_REPORT_BODY)
        gradients = np.frombuffer(reader.read(PAIR.itemsize * count), PAIR)
        reader.finish()
        return cls(number, client, to_optional(loss), forwards, skipped, gradients)


def as_pairs(members: npt.ArrayLike, values: npt.ArrayLike) -> npt.NDArray[np.void]:
    """Return members of the pool with their numbers as pairs, PAIR (n,)."""
    pairs = np.empty(len(np.asarray(members)), PAIR)
    pairs["member"], pairs["value"] = members, values
    return pairs

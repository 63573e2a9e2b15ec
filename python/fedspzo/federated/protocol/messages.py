"""The two messages of a round: a server's `Plan` and a client's `Report`.

docs/federation.md lays out every byte. Decoding checks magic, version, kind, length and checksum
first, and then each value. It raises ValueError for any fault.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import get_args

from fedspzo.byte_reader import Reader
from fedspzo.checks import LIMIT_16, LIMIT_32, LIMIT_64, check_choice, check_whole
from fedspzo.federated.settings import OptimizerConfig, Seeds
from fedspzo.journal.records import DIGEST_BYTES

from .framing import PLAN, REPORT, check_digest, frame, from_optional, pick, to_optional, unframe
from .step_settings import check_resolved, decode_settings, encode_settings
from .updates import EVERYBODY, Scalars, Update

_PLAN_BODY = struct.Struct(f"<IIQ{DIGEST_BYTES}s?HIB")
_CATCH_UP = struct.Struct("<?I")  # a download, number of updates
_REPORT_BODY = struct.Struct(f"<II{DIGEST_BYTES}sIff")

_SEEDS = get_args(Seeds)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tells a client the work that it has to do in a round.

    Attributes:
        round: the round, from 0.
        client: the client's id.
        run_seed: the run's seed.
        digest: digest of the global weights of `round`, 32 hexadecimal digits.
        train: False: the client only catches up and reports its digest.
        local_steps: number of steps in a round.
        batch_size: number of examples in a step.
        seeds: "per-client" or "shared".
        optimizer: the step's settings, resolved (`optimizers.resolve`). `at` is not sent, as the
            model is cut where it is loaded.
        updates: the updates that the client has missed, of consecutive rounds up to `round` - 1.
        download: the client loads the weights in place of updates. They come in messages of their
            own (`protocol.download`). Default False.

    Raises:
        ValueError: a value is out of range, or does not fit another; the message names it.
    """

    round: int
    client: int
    run_seed: int
    digest: str
    train: bool
    local_steps: int
    batch_size: int
    seeds: Seeds
    optimizer: OptimizerConfig
    updates: tuple[Update, ...]
    download: bool = False

    def __post_init__(self) -> None:
        check_whole("round", self.round, 0, LIMIT_32 - 1)
        check_whole("client", self.client, 0, EVERYBODY - 1)
        check_whole("run_seed", self.run_seed, 0, LIMIT_64 - 1)
        check_whole("local_steps", self.local_steps, 1, LIMIT_16 - 1)
        check_whole("batch_size", self.batch_size, 1, LIMIT_32 - 1)
        check_choice("seeds", self.seeds, _SEEDS)
        check_digest(self.digest)
        check_resolved(self.optimizer)
        first = self.round - len(self.updates)
        if [u.round for u in self.updates] != list(range(first, self.round)) or first < 0:
            raise ValueError(
                f"updates are of rounds {[u.round for u in self.updates]};"
                f" give consecutive ones that end at round {self.round - 1}"
            )
        if self.download and self.updates:
            raise ValueError("download is True, but updates are given; send one of them")
        expected = (self.local_steps, sum(self.optimizer.directions))
        for update in self.updates:
            update.check(*expected)

    def encode(self) -> bytes:
        """Return the bytes of the message (docs/federation.md)."""
        body = _PLAN_BODY.pack(
            self.round,
            self.client,
            self.run_seed,
            bytes.fromhex(self.digest),
            self.train,
            self.local_steps,
            self.batch_size,
            _SEEDS.index(self.seeds),
        )
        body += encode_settings(self.optimizer)
        body += _CATCH_UP.pack(self.download, len(self.updates))
        return frame(PLAN, body + b"".join(update.encode() for update in self.updates))

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """Decode a plan.

        Raises:
            ValueError: the bytes are damaged, cut short, of another version, or have a value out
                of range; the message names it.
        """
        reader = Reader(unframe(PLAN, data))
        number, client, run_seed, digest, train, local_steps, batch_size, seeds = reader.take(
            _PLAN_BODY
        )
        optimizer = decode_settings(reader)
        download, updates = reader.take(_CATCH_UP)
        plan = cls(
            round=number,
            client=client,
            run_seed=run_seed,
            digest=digest.hex(),
            train=train,
            local_steps=local_steps,
            batch_size=batch_size,
            seeds=pick("seeds", seeds, _SEEDS),
            optimizer=optimizer,
            updates=tuple(Update.decode(reader) for _ in range(updates)),
            download=download,
        )
        reader.finish()
        return plan


@dataclass(frozen=True, kw_only=True)
class Report:
    """A client's answer to a plan.

    Attributes:
        round: the plan's round.
        client: the client's id.
        digest: digest of the client's weights after its return to the global ones.
        examples: the client's number of examples.
        gradients: the projected gradients of the steps taken.
        loss: mean loss of those steps, a float32. None: no step was taken, or steps are private.
        forwards: computation, in full forward passes, a float32. For private steps it is the
            number of evaluations.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    round: int
    client: int
    digest: str
    examples: int
    gradients: Scalars
    loss: float | None
    forwards: float

    def __post_init__(self) -> None:
        check_whole("round", self.round, 0, LIMIT_32 - 1)
        check_whole("client", self.client, 0, EVERYBODY - 1)
        check_whole("examples", self.examples, 1, LIMIT_32 - 1)
        check_digest(self.digest)
        if self.loss is not None and not math.isfinite(self.loss):
            raise ValueError(f"loss is {self.loss}; give a finite number, or None for no steps")
        if not 0 <= self.forwards < math.inf:
            raise ValueError(f"forwards is {self.forwards}; give a finite number, at least 0")

    def encode(self) -> bytes:
        """Return the bytes of the message (docs/federation.md)."""
        body = _REPORT_BODY.pack(
            self.round,
            self.client,
            bytes.fromhex(self.digest),
            self.examples,
            from_optional(self.loss),
            self.forwards,
        )
        return frame(REPORT, body + self.gradients.encode())

    @classmethod
    def decode(cls, data: bytes) -> Report:
        """Decode a report.

        Raises:
            ValueError: as for `Plan.decode`.
        """
        reader = Reader(unframe(REPORT, data))
        number, client, digest, examples, loss, forwards = reader.take(_REPORT_BODY)
        report = cls(
            round=number,
            client=client,
            digest=digest.hex(),
            examples=examples,
            gradients=Scalars.decode(reader),
            loss=to_optional(loss),
            forwards=forwards,
        )
        reader.finish()
        return report

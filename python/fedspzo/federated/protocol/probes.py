"""The messages before the first round: a `Probe` asks a client for a step, a `ProbeReport` answers.

A step that measures the blocks' costs is asked of one client. The steps that find the rates of
lr="auto" follow one another, and each is asked of another client. A client first takes the earlier
steps again, from their losses (`SPZO.retake`), so that scalars are all that crosses.
docs/federation.md lays out every byte, and decoding is as strict as that of a plan.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedspzo.auto_lr.constants import LEARNING_TURNS
from fedspzo.byte_reader import Reader
from fedspzo.checks import LIMIT_8, LIMIT_16, LIMIT_32, check_choice, check_whole
from fedspzo.federated.settings import OptimizerConfig
from fedspzo.journal.records import DIGEST_BYTES

from .framing import PROBE, PROBE_REPORT, check_digest, frame, pick, unframe
from .step_settings import check_resolved, decode_settings, encode_settings
from .updates import EVERYBODY

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""The dtypes that a loss may have."""
LEAST_SHARE = 1e-12
"""Smallest cost share in a message. The rows of two words at one place of a text of a thousand, in
a model of 1e12 weights, cost more. Numbers of perturbations that follow from 1 / share are finite.
"""

_PROBE_BODY = struct.Struct(f"<I{DIGEST_BYTES}sI??")
_REPORT_BODY = struct.Struct(f"<IB{DIGEST_BYTES}sfB")
_LOSSES = struct.Struct("<BH")  # dtype, number of losses
_COUNT = struct.Struct("<B")
_SHARE = struct.Struct("<d")


@dataclass(frozen=True, eq=False)
class StepLosses:
    """The losses of a step's evaluations, in order.

    Attributes:
        dtype: the dtype of the loss, one of `DTYPES`.
        values: float64 (evaluations,). A loss may be infinite or NaN.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    dtype: str
    values: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        check_choice("dtype of the losses", self.dtype, DTYPES)
        if self.values.dtype != np.float64 or self.values.ndim != 1:
            raise ValueError(
                f"losses is a {self.values.dtype} array of shape {self.values.shape}; give float64"
                " of shape (evaluations,)"
            )
        check_whole("number of losses", len(self.values), 0, LIMIT_16 - 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepLosses) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def encode(self) -> bytes:
        """Return the bytes inside a message (docs/federation.md)."""
        head = _LOSSES.pack(DTYPES.index(self.dtype), len(self.values))
        with np.errstate(over="ignore"):  # only what no loss of this dtype can be
            return head + self.values.astype(_in_message(self.dtype)).tobytes()

    @classmethod
    def decode(cls, reader: Reader) -> StepLosses:
        """Decode the losses that come next in a message. Raise ValueError if they are invalid."""
        code, count = reader.take(_LOSSES)
        dtype = pick("dtype of the losses", code, DTYPES)
        kind = _in_message(dtype)
        values = np.frombuffer(reader.read(kind.itemsize * count), dtype=kind)
        return cls(dtype, values.astype(np.float64))


def _in_message(dtype: str) -> np.dtype[np.floating[npt.NBitBase]]:
    return np.dtype("<f8" if dtype == "float64" else "<f4")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Asks a client for one step at the base weights.

    Attributes:
        client: the client's id.
        digest: digest of the base weights, 32 hexadecimal digits.
        batch_size: number of examples in the step.
        optimizer: the step's settings, resolved. With lr="auto" the step finds rates; with
            numbers it measures the blocks' costs, and its update is given up.
        samples: each round samples its clients, so that its loss varies by chance.
        earlier: the losses of the steps before this one, which other clients took. It is empty
            unless lr is "auto".

    Raises:
        ValueError: a value is out of range, or does not fit another; the message names it.
    """

    client: int
    digest: str
    batch_size: int
    optimizer: OptimizerConfig
    samples: bool = False
    earlier: tuple[StepLosses, ...] = ()

    def __post_init__(self) -> None:
        check_whole("client", self.client, 0, EVERYBODY - 1)
        check_digest(self.digest)
        check_whole("batch_size", self.batch_size, 1, LIMIT_32 - 1)
        check_resolved(self.optimizer)
        most = LEARNING_TURNS - 1 if self.finds_rates else 0
        check_whole("number of earlier steps", len(self.earlier), 0, most)

    @property
    def finds_rates(self) -> bool:
        """The step is one of those that find the rates of lr="auto"."""
        return self.optimizer.lr == "auto"

    @property
    def step(self) -> int:
        """The step's number, from 0."""
        return len(self.earlier)

    def encode(self) -> bytes:
        """Return the bytes of the message (docs/federation.md)."""
        body = _PROBE_BODY.pack(
            self.client,
            bytes.fromhex(self.digest),
            self.batch_size,
            self.finds_rates,
            self.samples,
        )
        any_rate = replace(self.optimizer, lr=1.0) if self.finds_rates else self.optimizer
        body += encode_settings(any_rate) + _COUNT.pack(len(self.earlier))
        return frame(PROBE, body + b"".join(losses.encode() for losses in self.earlier))

    @classmethod
    def decode(cls, data: bytes) -> Probe:
        """Decode a probe.

        Raises:
            ValueError: as for `Plan.decode`.
        """
        reader = Reader(unframe(PROBE, data))
        client, digest, batch_size, finds_rates, samples = reader.take(_PROBE_BODY)
        optimizer = decode_settings(reader)
        (earlier,) = reader.take(_COUNT)
        probe = cls(
            client=client,
            digest=digest.hex(),
            batch_size=batch_size,
            optimizer=replace(optimizer, lr="auto") if finds_rates else optimizer,
            samples=samples,
            earlier=tuple(StepLosses.decode(reader) for _ in range(earlier)),
        )
        reader.finish()
        return probe


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """A client's answer to a probe.

    Attributes:
        client: the client's id.
        step: the step's number, from 0.
        digest: digest of the client's weights after its return to the base weights.
        forwards: computation, in full forward passes, a float32.
        cost_shares: each block's share of the cost, as `SPZO.cost_shares` has them. It is empty if
            the step found rates.
        losses: the step's losses. It is empty if the step measured costs.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    client: int
    step: int
    digest: str
    forwards: float
    cost_shares: tuple[float, ...]
    losses: StepLosses

    def __post_init__(self) -> None:
        check_whole("client", self.client, 0, EVERYBODY - 1)
        check_whole("step", self.step, 0, LEARNING_TURNS - 1)
        check_digest(self.digest)
        if not 0 <= self.forwards < math.inf:
            raise ValueError(f"forwards is {self.forwards}; give a finite number, at least 0")
        check_whole("number of cost shares", len(self.cost_shares), 0, LIMIT_8 - 1)
        for share in self.cost_shares:
            if not LEAST_SHARE <= share <= 1:
                raise ValueError(
                    f"cost_shares has {share}; each is above 0, and at most 1, and none is below"
                    f" {LEAST_SHARE:g}"
                )

    def encode(self) -> bytes:
        """Return the bytes of the message (docs/federation.md)."""
        body = _REPORT_BODY.pack(
            self.client,
            self.step,
            bytes.fromhex(self.digest),
            self.forwards,
            len(self.cost_shares),
        )
        body += b"".join(map(_SHARE.pack, self.cost_shares))
        return frame(PROBE_REPORT, body + self.losses.encode())

    @classmethod
    def decode(cls, data: bytes) -> ProbeReport:
        """Decode a probe's report.

        Raises:
            ValueError: as for `Plan.decode`.
        """
        reader = Reader(unframe(PROBE_REPORT, data))
        client, step, digest, forwards, shares = reader.take(_REPORT_BODY)
        report = cls(
            client=client,
            step=step,
            digest=digest.hex(),
            forwards=forwards,
            cost_shares=tuple(reader.take(_SHARE)[0] for _ in range(shares)),
            losses=StepLosses.decode(reader),
        )
        reader.finish()
        return report

"""Updates: the coefficients that a round adds to the weights, and the terms made from them.

A term's seed is never sent, as it is a function of the run's seed, the client, the step and the
direction. So a term costs the four bytes of its coefficient.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedspzo.byte_reader import Reader
from fedspzo.checks import LIMIT_16, LIMIT_32, check_whole
from fedspzo.federated.settings import OptimizerConfig
from fedspzo.journal.records import Record, Terms
from fedspzo.seeds import derive, step_rounding_seed, step_seeds

EVERYBODY = LIMIT_32 - 1
"""Stands in place of a client's id for scalars of all clients (shared seeds)."""

_UPDATE = struct.Struct("<IH")  # round, number of entries
_CLIENT = struct.Struct("<I")
_SCALARS = struct.Struct("<HH")  # local steps, directions of a step

# The first element of a seed's path tells its purpose. 1 and 2 are a step's (fedspzo.seeds).
_CLIENT_SEED, _BATCH, _SAMPLE = 3, 4, 5


@dataclass(frozen=True, eq=False)
class Scalars:
    """One number for each direction and local step: projected gradients, or coefficients.

    Attributes:
        local_steps: number of local steps in the round.
        steps: the steps that were taken, from 0, ascending. A step is skipped if its losses are
            not finite.
        values: float32 (len(steps), directions of a step), finite; block 1's directions first.

    Raises:
        ValueError: a value is out of range; the message names the field and the value.
    """

    local_steps: int
    steps: tuple[int, ...]
    values: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        check_whole("local_steps", self.local_steps, 0, LIMIT_16 - 1)
        if list(self.steps) != sorted({s for s in self.steps if 0 <= s < self.local_steps}):
            raise ValueError(
                f"steps is {self.steps}; give ascending numbers below local_steps,"
                f" {self.local_steps}"
            )
        if self.values.dtype != np.float32 or self.values.ndim != 2:
            raise ValueError(
                f"values is a {self.values.dtype} array of shape {self.values.shape};"
                " give float32 of shape (steps, directions)"
            )
        if len(self.values) != len(self.steps) or not 0 < self.values.shape[1] < LIMIT_16:
            raise ValueError(
                f"values has shape {self.values.shape}; give a row for each of the"
                f" {len(self.steps)} steps and at least one direction"
            )
        if not np.isfinite(self.values).all():
            row, column = np.argwhere(~np.isfinite(self.values))[0]
            raise ValueError(
                f"values[{row}, {column}] is {self.values[row, column]}; all must be finite"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scalars) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def encode(self) -> bytes:
        """Return the bytes inside a message (docs/federation.md)."""
        return _SCALARS.pack(self.local_steps, self.values.shape[1]) + self.encode_steps()

    def encode_steps(self, *, every: bool = False) -> bytes:
        """Return the bytes without the numbers of steps and directions, where those are known.

        Args:
            every: leave out the mask of steps, where it is known that all were taken. Default
                False.
        """
        values = self.values.astype("<f4").tobytes()
        return values if every else self._encode_mask() + values

    def _encode_mask(self) -> bytes:
        taken = np.zeros(self.local_steps, dtype=bool)
        taken[list(self.steps)] = True
        return np.packbits(taken, bitorder="little").tobytes()

    @classmethod
    def decode(cls, reader: Reader) -> Scalars:
        """Decode the scalars that come next in a message. Raise ValueError if they are invalid."""
        return cls.decode_steps(reader, *reader.take(_SCALARS))

    @classmethod
    def decode_steps(
        cls, reader: Reader, local_steps: int, columns: int, *, every: bool = False
    ) -> Scalars:
        """Decode the bytes of `encode_steps`.

        Args:
            reader: stands at the first of these bytes.
            local_steps: number of local steps.
            columns: number of directions in a step.
            every: all steps were taken, and the mask is left out. Default False.

        Raises:
            ValueError: the scalars are invalid.
        """
        steps = tuple(range(local_steps)) if every else cls._decode_mask(reader, local_steps)
        values = np.frombuffer(reader.read(4 * columns * len(steps)), dtype="<f4")
        return cls(local_steps, steps, values.astype(np.float32).reshape(len(steps), columns))

    @staticmethod
    def _decode_mask(reader: Reader, local_steps: int) -> tuple[int, ...]:
        mask = np.frombuffer(reader.read((local_steps + 7) // 8), dtype=np.uint8)
        taken = np.unpackbits(mask, bitorder="little")
        if taken[local_steps:].any():
            raise ValueError(f"the mask of steps names one beyond the {local_steps} there were")
        return tuple(int(s) for s in np.flatnonzero(taken))


@dataclass(frozen=True)
class Update:
    """The coefficients that a round adds to the weights. `record` makes terms from them.

    Attributes:
        round: the round, from 0.
        entries: pairs (client, coefficients), ascending by client. With shared seeds there is one
            entry, for EVERYBODY. It is empty if no client took a step.

    Raises:
        ValueError: a client or the round is out of range, or the clients are not ascending.
    """

    round: int
    entries: tuple[tuple[int, Scalars], ...]

    def __post_init__(self) -> None:
        check_whole("round", self.round, 0, LIMIT_32 - 1)
        clients = [client for client, _ in self.entries]
        if clients != sorted(set(clients)) or len(clients) >= LIMIT_16:
            raise ValueError(f"entries names clients {clients}; give each once, ascending")
        for client in clients:
            check_whole("client", client, 0, EVERYBODY)

    @property
    def terms(self) -> int:
        """Number of terms that the update adds."""
        return sum(scalars.values.size for _, scalars in self.entries)

    def check(self, local_steps: int, directions: int) -> None:
        """Raise ValueError unless all scalars have these numbers of local steps and directions."""
        for client, scalars in self.entries:
            shape = (scalars.local_steps, scalars.values.shape[1])
            if shape != (local_steps, directions):
                raise ValueError(
                    f"the update of round {self.round} has (steps, directions) {shape} for client"
                    f" {client}; this run has {(local_steps, directions)}"
                )

    def encode(self) -> bytes:
        """Return the bytes inside a message (docs/federation.md)."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:  # one update goes into many plans
        return _UPDATE.pack(self.round, len(self.entries)) + b"".join(
            _CLIENT.pack(client) + scalars.encode() for client, scalars in self.entries
        )

    @classmethod
    def decode(cls, reader: Reader) -> Update:
        """Decode the update that comes next in a message. Raise ValueError if it is invalid."""
        number, count = reader.take(_UPDATE)
        entries = tuple((reader.take(_CLIENT)[0], Scalars.decode(reader)) for _ in range(count))
        return cls(number, entries)


def client_seed(run_seed: int, client: int) -> int:
    """Return the seed of a client's optimizer; for EVERYBODY (shared seeds) the run's seed."""
    return run_seed if client == EVERYBODY else derive(run_seed, _CLIENT_SEED, client)


def batch_seed(run_seed: int, round: int, client: int, step: int) -> int:
    """Return the seed that draws the examples of a client's local step."""
    return derive(run_seed, _BATCH, round, client, step)


def sample_seed(run_seed: int, round: int) -> int:
    """Return the seed that samples a round's clients."""
    return derive(run_seed, _SAMPLE, round)


def first_step(round: int, local_steps: int) -> int:
    """Return the number of a round's first local step, counted over the run from 0."""
    return round * local_steps


def record(
    update: Update, *, run_seed: int, local_steps: int, optimizer: OptimizerConfig
) -> Record:
    """Make the journal record of an update. Terms are ordered by client, step and direction.

    Args:
        update: the coefficients.
        run_seed: the run's seed.
        local_steps: number of local steps in a round.
        optimizer: the step's settings, resolved.
    """
    directions = optimizer.directions
    start = first_step(update.round, local_steps)
    seeds: list[list[int]] = [[] for _ in directions]
    coeffs: list[list[npt.NDArray[np.float32]]] = [[] for _ in directions]
    for client, scalars in update.entries:
        seed = client_seed(run_seed, client)
        for step, row in zip(scalars.steps, scalars.values, strict=True):
            for block, new in enumerate(step_seeds(seed, start + step, directions)):
                seeds[block].extend(new)
            for block, part in enumerate(np.split(row, np.cumsum(directions)[:-1])):
                coeffs[block].append(part)
    stochastic = optimizer.rounding == "stochastic"
    return Record(
        round=update.round,
        terms=tuple(
            Terms(
                np.array(block_seeds, dtype=np.uint64),
                np.concatenate([np.empty(0, np.float32), *block_coeffs]),
            )
            for block_seeds, block_coeffs in zip(seeds, coeffs, strict=True)
        ),
        rounding_seed=step_rounding_seed(run_seed, start) if stochastic else None,
        stream=optimizer.stream,
    )

"""FedKSeed's finite pool of directions, and a model at coefficients along it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedspzo.blocks.cut import Blocks
from fedspzo.choices import Stream
from fedspzo.interrupts import HeldInterrupts
from fedspzo.journal.records import Record, Terms, apply
from fedspzo.journal.replica import Replica
from fedspzo.seeds import derive, step_seeds

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

# The first element of a seed's path, different from those of federated.protocol.updates.
_POOL, _MEMBER = 101, 102


class Pool:
    """A pool of K directions. Their seeds follow from the run's seed, so they are never sent.

    Args:
        size: K.
        run_seed: the run's seed.
        stream: the noise stream of the directions.

    Attributes:
        seed: an optimizer's seed. Member j is the direction of its step j.
        seeds: the members' seeds, uint64 (K,).
    """

    def __init__(self, size: int, run_seed: int, stream: Stream = "normal-v1") -> None:
        self.seed = derive(run_seed, _POOL)
        self.seeds = np.array(
            [step_seeds(self.seed, member, (1,))[0][0] for member in range(size)], dtype=np.uint64
        )
        self._run_seed, self._stream = run_seed, stream

    def draw(self, round: int, client: int, step: int, probabilities: Singles | None = None) -> int:
        """Draw the member for a client's local step.

        Args:
            round: the round, from 0.
            client: the client's id.
            step: the local step, from 0.
            probabilities: the members' probabilities, (K,). Default None: uniform.

        Returns:
            The member's number, in [0, K). It is a function of the arguments and the run's seed.
        """
        random = derive(self._run_seed, _MEMBER, round, client, step)
        if probabilities is None:
            return random * len(self.seeds) >> 64
        ends = np.cumsum(probabilities, dtype=np.float64)
        return int(
            min(np.searchsorted(ends, random / 2**64 * ends[-1], side="right"), len(ends) - 1)
        )

    def record(self, coefficients: Singles) -> Record:
        """Return the record that leads from the base to the coefficients (K,) along the pool."""
        used = np.flatnonzero(coefficients)
        terms = Terms(self.seeds[used], coefficients[used])
        return Record(round=0, terms=(terms,), stream=self._stream)


def probabilities(amplitudes: Floats) -> Singles:
    """Return FedKSeed-Pro's probabilities of the members, float32 (K,).

    They are the softmax of the min-max normalized amplitudes (arXiv 2312.06353).

    Args:
        amplitudes: each member's mean |g|, float64 (K,).
    """
    span = amplitudes.max() - amplitudes.min()
    weights = np.exp((amplitudes - amplitudes.min()) / (span + 1e-10))
    return np.asarray(weights / weights.sum(), dtype=np.float32)


class PooledWeights:
    """Moves a model to base + sum_j c_j z_j, for any coefficients c.

    The weights are computed from a copy of the base each time. So they depend on c alone, and a
    client that joins late holds the same bits as all others.

    Args:
        blocks: the model, as a single block, at the base weights.
        pool: the directions z_j.
    """

    def __init__(self, blocks: Blocks, pool: Pool) -> None:
        self.replica = Replica(blocks)
        self._pool = pool
        self._weights = [parameter.detach() for _, parameter in blocks.groups[0]]
        self._base = [weight.clone() for weight in self._weights]
        self._coefficients = np.zeros(len(pool.seeds), np.float32)

    def move_to(self, coefficients: Singles) -> None:
        """Move the model to these coefficients, float32 (K,)."""
        if np.array_equal(coefficients, self._coefficients):
            return
        with HeldInterrupts():
            for weight, base in zip(self._weights, self._base, strict=True):
                weight.copy_(base)
            apply(self._pool.record(coefficients), self.replica.blocks.groups)
            self._coefficients = coefficients.copy()
            self.replica.round += 1  # so that the replica's snapshot of other weights is not used

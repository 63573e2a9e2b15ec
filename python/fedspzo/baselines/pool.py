"""FedKSeed's finite pool of directions: its draws, and the weights along it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedspzo.blocks.cut import Blocks
from fedspzo.interrupts import HeldInterrupts
from fedspzo.journal.records import Record, Terms, apply
from fedspzo.journal.replica import Replica
from fedspzo.seeds import derive, step_seeds

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

# First elements of a seed's path, beside those of fedspzo.federated.protocol.updates.
_POOL, _MEMBER = 101, 102


class Pool:
    """K seeds that follow from the run's, so they never travel.

    Args:
        size: K.
        run_seed: the run's seed.

    Attributes:
        seed: the optimizer seed of which member j is the direction of step j.
        seeds: uint64 (K,), the members.
    """

    def __init__(self, size: int, run_seed: int) -> None:
        self.seed = derive(run_seed, _POOL)
        self.seeds = np.array(
            [step_seeds(self.seed, member, (1,))[0][0] for member in range(size)], dtype=np.uint64
        )
        self._run_seed = run_seed

    def draw(self, round: int, client: int, step: int, probabilities: Singles | None = None) -> int:
        """The member for a client's step: uniform, or with these probabilities (K,)."""
        random = derive(self._run_seed, _MEMBER, round, client, step)
        if probabilities is None:
            return random * len(self.seeds) >> 64
        ends = np.cumsum(probabilities, dtype=np.float64)
        return int(
            min(np.searchsorted(ends, random / 2**64 * ends[-1], side="right"), len(ends) - 1)
        )

    def record(self, coefficients: Singles) -> Record:
        """The one record that leads from the base to the sum over the pool's members."""
        used = np.flatnonzero(coefficients)
        return Record(round=0, terms=(Terms(self.seeds[used], coefficients[used]),))


def probabilities(amplitudes: Floats) -> Singles:
    """FedKSeed-Pro's: the softmax of the min-max normalised mean |g| of each member, (K,)."""
    span = amplitudes.max() - amplitudes.min()
    weights = np.exp((amplitudes - amplitudes.min()) / (span + 1e-10))
    return np.asarray(weights / weights.sum(), dtype=np.float32)


class PooledWeights:
    """A model at base + sum_j c_j z_j, for whichever coefficients c are asked for.

    Computed from the base each time, in one op, so that the weights depend on c alone and not on
    the way there: who joins late holds the same bits. Keeps a copy of the trainable weights.
    """

    def __init__(self, blocks: Blocks, pool: Pool) -> None:
        self.replica = Replica(blocks)
        self._pool = pool
        self._weights = [parameter.detach() for _, parameter in blocks.groups[0]]
        self._base = [weight.clone() for weight in self._weights]
        self._coefficients = np.zeros(len(pool.seeds), np.float32)

    def move_to(self, coefficients: Singles) -> None:
        """Go where these coefficients (K,) lead."""
        if np.array_equal(coefficients, self._coefficients):
            return
        with HeldInterrupts():
            for weight, base in zip(self._weights, self._base, strict=True):
                weight.copy_(base)
            apply(self._pool.record(coefficients), self.replica.blocks.groups)
            self._coefficients = coefficients.copy()
            self.replica.round += 1  # another place: its snapshot is no longer this one's

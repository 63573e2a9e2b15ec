"""Seeds: every random choice of a run is a pure function of its seed and of where it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SEED_LIMIT = 2**64

# The first path element of a step's seeds: which kind of seed it is.
_DIRECTION, _ROUNDING = 1, 2


def derive(seed: int, *path: int) -> int:
    """A 64-bit seed for the place `path` of the run that has seed `seed`.

    BLAKE2b over the integers as little-endian 64-bit words: stable across platforms and releases,
    and unrelated outputs for paths that differ in any element or in length.

    Args:
        seed: the parent seed, in [0, 2**64).
        path: e.g. (round, client), each in [0, 2**64).

    Returns:
        An int in [0, 2**64).

    Raises:
        ValueError: an element is not an int in [0, 2**64).
    """
    digest = hashlib.blake2b(digest_size=8, person=b"fedspzo-seeds-v1")
    for position, value in enumerate((seed, *path)):
        if not isinstance(value, int) or not 0 <= value < SEED_LIMIT:
            name = f"path[{position - 1}]" if position else "seed"
            raise ValueError(f"{name} is {value!r}; pass an int in [0, 2**64)")
        digest.update(value.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def step_seeds(seed: int, step: int, directions: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The seeds of a step's directions, block by block.

    Args:
        seed: the optimizer's seed.
        step: the step's number, from 0.
        directions: how many directions each block has in a step (block 1 first).

    Returns:
        One tuple of 64-bit seeds a block. Who knows `seed` and `step` knows them all, so they
        never travel.
    """
    return tuple(
        tuple(derive(seed, _DIRECTION, step, block, d) for d in range(count))
        for block, count in enumerate(directions)
    )


def step_rounding_seed(seed: int, step: int) -> int:
    """The seed of the random bits with which a step's update is rounded stochastically."""
    return derive(seed, _ROUNDING, step)

"""Derive seeds: every random choice of a run is a pure function of the run's seed and of its place.

The place is a path of integers, such as (round, client).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SEED_LIMIT = 2**64

# the first path element of a step's seeds, which names the kind of seed
_DIRECTION, _ROUNDING = 1, 2


def check_seed(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an int in [0, 2**64)."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < SEED_LIMIT:
        raise ValueError(f"{name} is {value!r}; pass an int in [0, 2**64)")


def derive(seed: int, *path: int) -> int:
    """Return the 64-bit seed of the place `path` in the run that has the seed `seed`.

    It is BLAKE2b over the integers as little-endian 64-bit words. So it is the same on all
    platforms and releases, and paths that differ in any element or in length have unrelated seeds.

    Args:
        seed: the parent seed, in [0, 2**64).
        path: the place, such as (round, client), with each element in [0, 2**64).

    Returns:
        The seed, in [0, 2**64).

    Raises:
        ValueError: an element is not an int in [0, 2**64).
    """
    digest = hashlib.blake2b(digest_size=8, person=b"fedspzo-seeds-v1")
    for position, value in enumerate((seed, *path)):
        check_seed(f"path[{position - 1}]" if position else "seed", value)
        digest.update(value.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def step_seeds(seed: int, step: int, directions: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the seeds of a step's directions, block by block.

    Whoever knows `seed` and `step` knows them all, so they never travel.

    Args:
        seed: the optimizer's seed.
        step: the step's number, from 0.
        directions: number of directions of each block in a step, block 1 first.

    Returns:
        For each block, a tuple of 64-bit seeds.
    """
    return tuple(
        tuple(derive(seed, _DIRECTION, step, block, d) for d in range(count))
        for block, count in enumerate(directions)
    )


def step_rounding_seed(seed: int, step: int) -> int:
    """Return the seed of the random bits by which a step's update is rounded stochastically."""
    return derive(seed, _ROUNDING, step)

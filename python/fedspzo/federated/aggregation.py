"""Many clients' projected gradients put together, robustly if wished.

With shared seeds all clients of a round report along the same directions, so their scalars can be
compared one by one. Arrays are float64 (clients, local steps, directions), zero where a client
skipped a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def clip(values: Array, taken: Mask, directions: Sequence[int], limit: float) -> Array:
    """Bound the size of each client's scalars, block by block, by `limit` times the usual size.

    A client's size is the root mean square of its scalars in a block over the steps it took; the
    usual size is the lower median of those that are not zero. A client above the bound is scaled
    down to it, so its scalars keep their proportions.

    Args:
        values: (clients, steps, directions of all blocks).
        taken: (clients, steps), which steps were taken.
        directions: how many directions each block has.
        limit: at least 1: the median itself is never scaled.
    """
    clipped = values.copy()
    steps = np.maximum(taken.sum(axis=1), 1)
    for end, count in zip(np.cumsum(directions), directions, strict=True):
        part = slice(end - count, end)
        sizes = np.sqrt((values[:, :, part] ** 2).sum(axis=(1, 2)) / (steps * max(count, 1)))
        known = np.sort(sizes[sizes > 0])
        if len(known):
            bound = limit * known[(len(known) - 1) // 2]
            scale = np.minimum(1.0, bound / np.where(sizes > 0, sizes, bound))
            clipped[:, :, part] *= scale[:, None, None]
    return clipped


def combine(
    rule: str, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
) -> tuple[Array, Mask]:
    """One client's worth of scalars from all clients'.

    Args:
        rule: "mean"; "trimmed-mean" or "median" (Yin et al. 2018, arXiv 1803.01498), of each
            scalar by itself; "krum" (Blanchard et al. 2017, arXiv 1703.02757): the one client
            nearest to others.
        values: (clients, steps, directions).
        taken: (clients, steps), which steps were taken.
        weights: of the clients, for "mean"; the other rules count each alike, as a client that
            lies may also lie about its number of examples.
        byzantine: share of the clients that may lie, for "trimmed-mean" and "krum".

    Returns:
        Scalars (steps, directions), and which of the steps have any (steps,).
    """
    if rule == "krum":
        chosen = _krum(values, _liars(len(values), byzantine, honest=3))
        return values[chosen], np.asarray(taken[chosen])
    combined = _RULES[rule](values, weights, byzantine)
    return combined, np.asarray(taken.any(axis=0))


def _mean(values: Array, weights: Sequence[float], byzantine: float) -> Array:
    total = np.zeros(values.shape[1:])
    for one, weight in zip(values, weights, strict=True):  # in this order, whatever the library
        total += weight * one
    return total


def _trimmed_mean(values: Array, weights: Sequence[float], byzantine: float) -> Array:
    cut = _liars(len(values), byzantine, honest=1)
    kept: Array = np.sort(values, axis=0)[cut : len(values) - cut]
    return _mean(kept, [1 / len(kept)] * len(kept), byzantine)


def _median(values: Array, weights: Sequence[float], byzantine: float) -> Array:
    return np.asarray(np.median(values, axis=0), dtype=np.float64)


_RULES: dict[str, Callable[[Array, Sequence[float], float], Array]] = {
    "mean": _mean,
    "trimmed-mean": _trimmed_mean,
    "median": _median,
}


def _krum(values: Array, liars: int) -> int:
    """The client with the smallest sum of squared distances to its n - f - 2 nearest others."""
    nearest = max(1, len(values) - liars - 2)
    scores = []
    for one in values:
        distances = np.sort(((values - one) ** 2).sum(axis=(1, 2)))
        scores.append(distances[1 : 1 + nearest].sum())  # the first is its distance to itself
    return int(np.argmin(scores))


def _liars(clients: int, byzantine: float, *, honest: int) -> int:
    """How many of the clients a rule holds for liars: f, with 2 f + honest <= clients."""
    wanted = math.ceil(byzantine * clients - 1e-9)  # 0.3 * 10 is 3, whatever its rounding
    return max(0, min(wanted, (clients - honest) // 2))

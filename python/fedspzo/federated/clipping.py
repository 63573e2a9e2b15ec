"""Bounds absurdly large scalars before they are put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .aggregation import Array, Mask


def clip(values: Array, taken: Mask, directions: Sequence[int], limit: float) -> Array:
    """Bound the size of each client's scalars, block by block, by `limit` times the usual size.

    A client's size is the root mean square of its scalars in a block over the steps it took; the
    usual size is the lower median of those that are not zero. A client above the bound is scaled
    down to it, so its scalars keep their proportions.

    Args:
        values: float64 (clients, steps, directions of all blocks).
        taken: bool (clients, steps), which steps were taken.
        directions: how many directions each block has.
        limit: at least 1: the median itself is never scaled.

    Returns:
        The bounded scalars, of the shape of `values`.
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

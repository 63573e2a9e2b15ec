"""Clipping: bounds absurdly large scalars before they are aggregated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .aggregation import Array, Mask


def clip(values: Array, taken: Mask, directions: Sequence[int], limit: float) -> Array:
    """Scale down clients whose scalars are large, block by block, to `limit` times the usual size.

    A client's size is the root mean square of its scalars in a block, over the steps that it took.
    The usual size is the lower median of the sizes that are not zero. The scalars of a client
    above the bound keep their proportions.

    Args:
        values: float64 (clients, steps, directions of all blocks); zero in a skipped step.
        taken: bool (clients, steps), True where a client took the step.
        directions: each block's number of directions.
        limit: at least 1, so that the median itself is never scaled.

    Returns:
        The clipped scalars, with the shape of `values`.
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

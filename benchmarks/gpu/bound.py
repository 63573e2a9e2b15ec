"""How fast a training step can be, over its forward passes alone: counted in bytes of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Passes(NamedTuple):
    """How often a step has to pass over a block's weights.

    Attributes:
        weights: how many the block has.
        passes: at least so many; each reads and writes every weight once.
    """

    weights: int
    passes: int


def block_passes(weights: int, directions: int, sides: int) -> Passes:
    """Count the passes over a block that a step of "anchored" or "mezo" cannot do without.

    Every point where the loss is evaluated is one pass: in place from the point before it, or
    layerwise from the weights to the scratch buffer. One more restores and updates together.

    Args:
        weights: of the block.
        directions: the block's in a step, P_b.
        sides: points along each, 1 or 2.
    """
    return Passes(weights, sides * directions + 1 if directions else 0)


def forward_share_bound(
    forwards: float,
    forward_ms: float,
    blocks: Sequence[Passes],
    bytes_a_weight: int,
    copy_bytes_per_s: float,
) -> float:
    r"""Bound the share of a step's time that its forward passes take.

    .. math:: \frac{F t}{F t + \sum_b n_b N_b \cdot 2 s / B}

    for F forward passes of time t, n_b passes over the N_b weights of block b, s bytes a weight
    and B bytes a second, read and written, of a copy. No passes run beside the forward passes.

    Args:
        forwards: F, the cost of the step's evaluations in full forward passes.
        forward_ms: t, in milliseconds.
        blocks: each block's weights and passes.
        bytes_a_weight: s.
        copy_bytes_per_s: B, measured on the device.

    Returns:
        The bound, in (0, 1].
    """
    computing = forwards * forward_ms / 1e3
    moving = sum(b.weights * b.passes for b in blocks) * 2 * bytes_a_weight / copy_bytes_per_s
    return computing / (computing + moving)

"""DeComFL (arXiv 2405.15861): all clients share their directions, and send and receive scalars."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import Setup

from . import mezo


def adapt(setup: Setup) -> Setup:
    """Return the setup in which a round's clients share directions, and their scalars are averaged.

    In step k of round r every client measures g_p = (l(mu z_p) - l(0)) / mu along the P directions
    of (r, k), and moves its own weights by -(lr / P) sum_p g_p z_p. After its local steps it
    returns to the global weights. The server sends all clients the unweighted mean of each scalar
    over the round's clients (`weighting` is ignored), and the weights move by these. A client
    catches up with the scalars of the rounds that it missed. `sides` defaults to "one", as
    published.

    Seeds follow from (run seed, r, k). The published server draws and sends them, which takes 4
    bytes more for each step. Our clients return to a copy of the weights. The published ones
    subtract their steps, which leaves rounding errors.
    """
    optimizer = mezo.settings(setup.optimizer)
    return replace(
        setup,
        blocks=Blocks.single(setup.blocks.model),
        federation=replace(setup.federation, seeds="shared", weighting="uniform"),
        optimizer=replace(optimizer, sides=optimizer.sides or "one"),
    )

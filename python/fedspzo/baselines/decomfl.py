"""DeComFL (arXiv 2405.15861): directions common to all clients, scalars both ways."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import Setup

from . import mezo


def adapt(setup: Setup) -> Setup:
    """Let all clients of a round step along the same P directions; average their scalars.

    In step k of round r every client measures g_p = (l(mu z_p) - l(0)) / mu along the P directions
    of (r, k), moves its own weights by `-lr / P` times the sum of g_p z_p, and after K steps goes
    back. The server sends everybody the mean of each scalar over the round's clients, all alike
    (`weighting` is ignored), and the weights move by those. A client catches up by the missed
    rounds' scalars. `sides` defaults to "one", as published.

    Seeds follow from (run seed, r, k), where the published server draws and sends them: 4 bytes a
    step fewer. Our clients go back to a copy of the weights; the published ones subtract their
    steps, which leaves rounding errors.
    """
    optimizer = mezo.settings(setup.optimizer)
    return replace(
        setup,
        blocks=Blocks.single(setup.blocks.model),
        federation=replace(setup.federation, seeds="shared", weighting="uniform"),
        optimizer=replace(optimizer, sides=optimizer.sides or "one"),
    )

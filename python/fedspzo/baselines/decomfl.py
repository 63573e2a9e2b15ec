"""DeComFL (arXiv 2405.15861): directions common to all clients, scalars both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from fedspzo import federated
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult
from fedspzo.federated.client import Task

from . import mezo
from .loop import Options


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    **options: Unpack[Options],
) -> RunResult:
    """All clients of a round step along the same P directions; the server averages their scalars.

    In step k of round r every client measures g_p = (l(mu z_p) - l(0)) / mu along the P directions
    of (r, k), moves its own weights by `-lr / P` times the sum of g_p z_p, and after K steps goes
    back. The server sends everybody the mean of each scalar over the round's clients, all alike
    (`weighting` is ignored), and the weights move by those. A client catches up by the missed
    rounds' scalars. `sides` defaults to "one", as published.

    Seeds follow from (run seed, r, k), where the published server draws and sends them: 4 bytes a
    step fewer. Our clients go back to a copy of the weights; the published ones subtract their
    steps, which leaves rounding errors.

    For arguments and result see `loop.Method`.
    """
    shared = replace(federation, seeds="shared", weighting="uniform")
    one_sided = replace(mezo.settings(optimizer), sides=optimizer.sides or "one")
    whole = Blocks.single(blocks.model)
    return federated.run(whole, task, examples, shared, one_sided, **options)

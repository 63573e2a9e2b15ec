"""MeZO (arXiv 2305.17333): zeroth-order SGD over the whole model, central."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from fedspzo import federated
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult
from fedspzo.federated.client import Task

from .loop import Options


def settings(optimizer: OptimizerConfig) -> OptimizerConfig:
    """The settings with MeZO's estimator, which the federated zeroth-order baselines use too.

    Raises:
        ValueError: `lr` or `perturbations` has several values: there is one block.
    """
    return replace(optimizer, estimator="mezo")


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    **options: Unpack[Options],
) -> RunResult:
    """Train centrally on all clients' examples together, one step a round.

    A step moves the weights by `-lr / P` times the sum of g_p z_p over `perturbations` = P
    directions, with g_p = (l(eps z_p) - l(-eps z_p)) / 2 eps; with sides="one" it is
    (l(eps z_p) - l(0)) / eps. Published with P = 1, two-sided, and with weight decay, which we
    leave out. `clients`, `participation` and `local_steps` have no meaning here and are ignored;
    bytes are those of a federation of one client.

    For arguments and result see `loop.Method`.
    """
    pooled = [example for own in examples for example in own]
    central = replace(federation, clients=1, participation=1.0, local_steps=1, seeds="shared")
    whole = Blocks.single(blocks.model)
    return federated.run(whole, task, [pooled], central, settings(optimizer), **options)

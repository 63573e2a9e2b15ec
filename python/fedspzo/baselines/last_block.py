"""Zeroth-order training of the last block alone, the ones before it frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from fedspzo import federated
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult
from fedspzo.federated.client import Task

from .loop import Options

DIRECTIONS = 8
"""Of a step, where the settings name none: one more forward pass for a block of an eighth."""


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    **options: Unpack[Options],
) -> RunResult:
    """Train the last block along P directions a step; what stands before it is computed once.

    With C the last block's share of a forward pass, a one-sided step costs 1 + P C, and moves the
    block by `-lr / P` times the sum of (l(eps z_p) - l(0)) / eps z_p. Of `optimizer.perturbations`
    the last number counts. No publication: the bar that training all blocks has to clear.

    For arguments and result see `loop.Method`.
    """
    given = optimizer.perturbations
    count = DIRECTIONS if given is None else given if isinstance(given, int) else given[-1]
    only = replace(
        optimizer,
        estimator="anchored",
        sides=optimizer.sides or "one",
        perturbations=(0,) * (len(blocks.groups) - 1) + (count,),
    )
    return federated.run(blocks, task, examples, federation, only, **options)

"""The last block alone: the others stay as they are, and their activations are reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from fedspzo import federated
from fedspzo.blocks import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult
from fedspzo.federated.client import Task

from .loop import Options

DIRECTIONS = 32


def settings(optimizer: OptimizerConfig, blocks: int) -> OptimizerConfig:
    """The settings with directions for the last of `blocks` blocks only: `perturbations`, or 32."""
    count = optimizer.perturbations if isinstance(optimizer.perturbations, int) else DIRECTIONS
    return replace(optimizer, estimator="anchored", perturbations=(0,) * (blocks - 1) + (count,))


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    **options: Unpack[Options],
) -> RunResult:
    """Each client's step costs one full forward pass and P of the last block's share.

    A step moves the last block by `-lr` times the sum of g_p z_p over P directions, with
    g_p = (l(eps z_p) - l(0)) / eps at the activations of the full pass. Fast, and stuck where the
    other blocks' features end: an honest baseline for what the other blocks are worth.

    For arguments and result see `loop.Method`; `blocks` has at least two, `perturbations` is P.
    """
    alone = settings(optimizer, len(blocks.groups))
    return federated.run(blocks, task, examples, federation, alone, **options)

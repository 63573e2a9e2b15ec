"""FedMeZO (arXiv 2402.05926), which is FedZO (arXiv 2201.09531) with MeZO's estimator."""

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
    """Each client takes `local_steps` of MeZO along directions of its own; weights are averaged.

    Published, clients send their weights. The average of weights is the base plus the averaged
    terms, so ours send the scalars: the same weights up to rounding, and `fedavg_bytes` is what
    the published form sends each way. FedZO draws directions from the unit sphere, one-sided;
    FedMeZO, as here, from the normal distribution, two-sided, and trains LoRA adapters: pass a
    model that has them for the same.

    For arguments and result see `loop.Method`.
    """
    own = replace(federation, seeds="per-client")
    whole = Blocks.single(blocks.model)
    return federated.run(whole, task, examples, own, mezo.settings(optimizer), **options)

"""FedMeZO (arXiv 2402.05926): FedZO (arXiv 2201.09531) with MeZO's estimator."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import Setup

from . import mezo


def adapt(setup: Setup) -> Setup:
    """Return the setup in which clients take MeZO steps on their own, and weights are averaged.

    Each client takes `local_steps` along directions of its own. The published clients send their
    weights. The mean of the weights is the base plus the mean of the terms, so ours send scalars
    and get the same weights up to rounding. `fedavg_bytes` is the traffic of the published form,
    each way. FedZO uses one-sided differences along directions from the unit sphere. FedMeZO uses
    two-sided ones along normal directions, as here, and trains LoRA adapters: pass a model that has
    them to do the same.
    """
    return replace(
        setup,
        blocks=Blocks.single(setup.blocks.model),
        federation=replace(setup.federation, seeds="per-client"),
        optimizer=mezo.settings(setup.optimizer),
    )

"""FedMeZO (arXiv 2402.05926), which is FedZO (arXiv 2201.09531) with MeZO's estimator."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import Setup

from . import mezo


def adapt(setup: Setup) -> Setup:
    """Let each client take `local_steps` of MeZO along directions of its own; average the weights.

    Published, clients send their weights. The average of weights is the base plus the averaged
    terms, so ours send the scalars: the same weights up to rounding, and `fedavg_bytes` is what
    the published form sends each way. FedZO draws directions from the unit sphere, one-sided;
    FedMeZO, as here, from the normal distribution, two-sided, and trains LoRA adapters: pass a
    model that has them for the same.
    """
    return replace(
        setup,
        blocks=Blocks.single(setup.blocks.model),
        federation=replace(setup.federation, seeds="per-client"),
        optimizer=mezo.settings(setup.optimizer),
    )

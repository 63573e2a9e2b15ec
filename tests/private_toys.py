"""A private task and mechanisms for it."""

from __future__ import annotations

from random import Random

from federated_toys import ToyTask
from torch import Tensor, nn

from fedspzo.federated import OptimizerConfig
from fedspzo.privacy import Mechanism, Privacy

MODERATE = Privacy(clip=1.0, noise_multiplier=0.5)

NOISELESS = 1e-9  # a noise multiplier: the noise is below the tests' tolerance

OPTIMIZER = OptimizerConfig(lr=0.05, perturbations=(2, 4), sides="one", rounding="nearest")


class PrivateToy(ToyTask):
    def losses(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y, reduction="none")


def everything(noise_multiplier: float, examples: int, clip: float = 1.0) -> Mechanism:
    """A mechanism whose batches are the whole dataset."""
    settings = Privacy(clip=clip, noise_multiplier=noise_multiplier, delta=1e-9)
    return Mechanism(settings, examples, random=Random(0))

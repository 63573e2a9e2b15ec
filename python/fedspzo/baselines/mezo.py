"""MeZO (arXiv 2305.17333): central zeroth-order SGD over the whole model."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import OptimizerConfig, Setup


def settings(optimizer: OptimizerConfig) -> OptimizerConfig:
    """Return the settings with MeZO's estimator. Other zeroth-order baselines use it too.

    Raises:
        ValueError: `lr` or `perturbations` has several values, but there is one block.
    """
    return replace(optimizer, estimator="mezo")


def adapt(setup: Setup) -> Setup:
    """Return the setup that trains centrally on all clients' examples, with one step in a round.

    A step moves the weights by -(lr / P) sum_p g_p z_p over P = `perturbations` directions, with
    g_p = (l(eps z_p) - l(-eps z_p)) / (2 eps), or (l(eps z_p) - l(0)) / eps with sides="one". MeZO
    was published with P = 1, two-sided, and with weight decay, which we leave out. `clients`,
    `participation` and `local_steps` are ignored. The bytes are those of a federation of one
    client.
    """
    return replace(
        setup,
        blocks=Blocks.single(setup.blocks.model),
        examples=[[example for own in setup.examples for example in own]],
        federation=replace(
            setup.federation, clients=1, participation=1.0, local_steps=1, seeds="shared"
        ),
        optimizer=settings(setup.optimizer),
    )

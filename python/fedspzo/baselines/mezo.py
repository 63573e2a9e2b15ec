"""MeZO (arXiv 2305.17333): zeroth-order SGD over the whole model, central."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import OptimizerConfig, Setup


def settings(optimizer: OptimizerConfig) -> OptimizerConfig:
    """Return the settings with MeZO's estimator, which other zeroth-order baselines use too.

    Raises:
        ValueError: `lr` or `perturbations` has several values: there is one block.
    """
    return replace(optimizer, estimator="mezo")


def adapt(setup: Setup) -> Setup:
    """Train centrally on all clients' examples together, one step a round.

    A step moves the weights by `-lr / P` times the sum of g_p z_p over `perturbations` = P
    directions, with g_p = (l(eps z_p) - l(-eps z_p)) / 2 eps; with sides="one" it is
    (l(eps z_p) - l(0)) / eps. Published with P = 1, two-sided, and with weight decay, which we
    leave out. `clients`, `participation` and `local_steps` have no meaning here and are ignored;
    bytes are those of a federation of one client.
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

"""Zeroth-order training of the last block alone. The blocks before it are frozen."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.federated import Setup

DIRECTIONS = 8
"""Default number of directions in a step. For a block that costs an eighth of a forward pass they
take one forward pass together."""


def adapt(setup: Setup) -> Setup:
    """Return the setup that trains the last block alone, along P directions in a step.

    The blocks before it are computed once in a step. If the last block takes the share C of a
    forward pass, a one-sided step costs 1 + P C. It moves the block by
    -(lr / P) sum_p (l(eps z_p) - l(0)) / eps z_p. P is the last number of
    `optimizer.perturbations`, and `DIRECTIONS` by default. The method has no publication. It is the
    bar that training all blocks has to clear.
    """
    given = setup.optimizer.perturbations
    count = DIRECTIONS if given is None else given if isinstance(given, int) else given[-1]
    only = replace(
        setup.optimizer,
        estimator="anchored",
        sides=setup.optimizer.sides or "one",
        perturbations=(0,) * (len(setup.blocks.groups) - 1) + (count,),
    )
    return replace(setup, optimizer=only)

"""Zeroth-order training of the last block alone, the ones before it frozen."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.federated import Setup

DIRECTIONS = 8
"""Of a step, where the settings name none: one more forward pass for a block of an eighth."""


def adapt(setup: Setup) -> Setup:
    """Train the last block along P directions a step; what stands before it is computed once.

    With C the last block's share of a forward pass, a one-sided step costs 1 + P C, and moves the
    block by `-lr / P` times the sum of (l(eps z_p) - l(0)) / eps z_p. Of `optimizer.perturbations`
    the last number counts. No publication: the bar that training all blocks has to clear.
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

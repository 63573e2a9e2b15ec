"""Defaults that follow from what the blocks' evaluations cost: perturbations and learning rates.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST_PERTURBATIONS, MOST_PERTURBATIONS = 3, 32
"""Block 1's directions: they cost one pass more than there are, so three cost four passes where
three steps of one cost six. And the most that a later block gets."""
FEDERATED_FIRST, FEDERATED_MOST = 1, 8
"""The same for one of several clients, whose directions are averaged anyway and cost a scalar each.
As clients' labels differ, 32 made them part on the demo's task (docs/estimators.md)."""
NEWTON_PRODUCTS = 2
"""Products with a block's Hessian in a Newton step (`fedspzo.auto_lr.newton`)."""
MOST_NEWTON, FEWEST_NEWTON = 32, 8
"""The most directions of a Newton step, as time counts too, and the fewest that it is worth."""


def newton_evaluations(count: int) -> int:
    """Return the evaluations of a Newton step: both sides of `count` directions, and products."""
    return 2 * count + NEWTON_PRODUCTS * (count + 1)


def can_take_newton_steps(count: int, share: float) -> bool:
    """Tell whether a Newton step along `count` directions costs at most a forward pass.

    Args:
        count: directions in a step.
        share: what an evaluation of the block costs, in full forward passes.
    """
    in_range = 2 * NEWTON_PRODUCTS <= count <= MOST_NEWTON
    return in_range and newton_evaluations(count) * share <= 1


def newton_perturbations(share: float) -> int | None:
    """Return the most directions of a Newton step that fit a forward pass; None if too few."""
    counts = range(MOST_NEWTON, FEWEST_NEWTON - 1, -1)
    return next((count for count in counts if can_take_newton_steps(count, share)), None)


def default_lr_scales(directions: Sequence[int]) -> tuple[float, ...]:
    """Return learning rates over block 1's: D_b / D_1, so that every direction counts alike.

    A step adds `-lr_b g / D_b` along each of block b's D_b directions: with lr_b = lr D_b / D_1
    that is `-lr g / D_1` whatever its block. A block without directions has the rate of one.
    """
    first, *later = (max(1, count) for count in directions)
    return (1.0, *(count / first for count in later))


def known_shares(
    given: Sequence[float] | None, blocks: int, *, replayed: bool
) -> tuple[float, ...] | None:
    """Return the cost shares as given; all 1 where nothing is replayed; None: to be measured.

    Raises:
        ValueError: there is not one share in (0, 1] for each block but the first.
    """
    if given is not None:
        if len(given) != blocks - 1 or not all(0 < share <= 1 for share in given):
            raise ValueError(
                f"cost_shares is {given!r}; pass a number in (0, 1] for each block but the first"
            )
        return tuple(given) if replayed else (1.0,) * (blocks - 1)
    return None if replayed else (1.0,) * (blocks - 1)

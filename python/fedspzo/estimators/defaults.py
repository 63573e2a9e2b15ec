"""Defaults that follow from the costs of the blocks' evaluations: perturbations, learning rates.

This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Estimator

FIRST_PERTURBATIONS, MOST_PERTURBATIONS = 3, 32
"""Number of directions of block 1, and the largest number of a later block. P1 directions cost
P1 + 1 passes: three cost four passes, where three steps of one direction cost six."""
FEDERATED_FIRST, FEDERATED_MOST = 1, 8
"""The same for one of several clients, whose directions are averaged anyway and cost a scalar each.
As clients' labels differ, their weights drifted apart with 32 on the demo's task
(docs/results.md)."""
NEWTON_PRODUCTS = 2
"""Number of products with a block's Hessian in a Newton step (`fedspzo.auto_lr.newton`)."""
MOST_NEWTON, FEWEST_NEWTON = 32, 8
"""Largest number of directions of a Newton step, as time counts too, and the smallest number for
which a Newton step is chosen by default."""


def newton_evaluations(count: int) -> int:
    """Return the number of evaluations of a Newton step: two a direction, and the products'."""
    return 2 * count + NEWTON_PRODUCTS * (count + 1)


def can_take_newton_steps(count: int, share: float) -> bool:
    """Tell whether a Newton step along `count` directions costs at most a forward pass.

    Args:
        count: number of directions in a step.
        share: cost of an evaluation of the block, in full forward passes.
    """
    in_range = 2 * NEWTON_PRODUCTS <= count <= MOST_NEWTON
    return in_range and newton_evaluations(count) * share <= 1


def newton_perturbations(share: float) -> int | None:
    """Return the largest number of directions whose Newton step costs at most a forward pass.

    Returns None if there is no such number from `FEWEST_NEWTON` to `MOST_NEWTON`.
    """
    counts = range(MOST_NEWTON, FEWEST_NEWTON - 1, -1)
    return next((count for count in counts if can_take_newton_steps(count, share)), None)


def default_lr_scales(directions: Sequence[int]) -> tuple[float, ...]:
    """Return each block's learning rate over block 1's: D_b / D_1, so all directions count alike.

    A step adds `-lr_b g / D_b` along each of block b's D_b directions. With lr_b = lr D_b / D_1
    that is `-lr g / D_1`, whatever the block. A block without directions has the rate of a block
    with one.
    """
    first, *later = (max(1, count) for count in directions)
    return (1.0, *(count / first for count in later))


def every_share(shares: Sequence[float] | None, blocks: int) -> tuple[float, ...]:
    """Return every block's cost share: block 1's is 1 unless it is among those given.

    Args:
        shares: as `known_shares` returned them. None or none: all are 1.
        blocks: number of blocks.
    """
    if not shares:
        return (1.0,) * blocks
    return (1.0,) * (blocks - len(shares)) + tuple(shares)


def default_perturbations(
    estimator: type[Estimator], shares: Sequence[float], blocks: int, first: int, most: int
) -> tuple[int, ...]:
    """Choose each block's number of perturbations.

    An estimator's rule takes an evaluation of block 1 to cost a pass. If what stands before block
    1 is frozen, the costs are shares of such an evaluation, C_b / C_1, and the number that is left
    open is first / sqrt(C_1), rounded, at most `most`.

    Args:
        estimator: the estimator's class.
        shares: as `known_shares` returned them.
        blocks: number of blocks.
        first, most: as `Estimator.default_perturbations` takes them.
    """
    own, *later = every_share(shares, blocks)
    first = first if own == 1.0 else min(most, round(first * own**-0.5))
    return estimator.default_perturbations([share / own for share in later], first, most)


def known_shares(
    given: Sequence[float] | None, blocks: int, *, replayed: bool, frozen: bool = False
) -> tuple[float, ...] | None:
    """Return the cost shares if they are known, else None: they are then to be measured.

    Args:
        given: the shares that the user passed, or None.
        blocks: number of blocks.
        replayed: layers are replayed. Else every evaluation is a full one, and all shares are 1.
        frozen: what is frozen may be replayed for block 1. Its share may then come first.

    Raises:
        ValueError: there is not one share in (0, 1] for each block but the first.
    """
    if given is not None:
        fits = blocks - 1 <= len(given) <= blocks - (not frozen)
        if not fits or not all(0 < share <= 1 for share in given):
            raise ValueError(
                f"cost_shares is {given!r}; pass a number in (0, 1] for each block but the first"
            )
        return tuple(given) if replayed else (1.0,) * (blocks - 1)
    return None if replayed else (1.0,) * (blocks - 1)

"""The defaults that follow from what the blocks cost: perturbations, and from them learning rates.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence

FIRST_PERTURBATIONS = 3
"""Block 1's, "anchored": one pass more than directions, so three cost four passes, not six."""
FIRST_OF_MANY = 1
"""Block 1's where a step is one of several clients', whose directions are averaged anyway."""
MOST_PERTURBATIONS, MOST_OF_MANY = 32, 8
"""The most that a rule gives a block; and one of several clients, which sends a scalar for each: as
their labels differ, 32 made them part on the demo's task (docs/estimators.md)."""
PIVOTS = 2
"""Products with a block's Hessian in a step that solves for its curvature
(`fedspzo.auto_lr.newton`)."""
MOST_SOLVED, FEWEST_SOLVED = 32, 8
"""Of the last block with lr="auto", the most directions that it is solved along, as time counts
too; and the fewest that a rule gives it for that."""


def evaluations_to_solve(count: int) -> int:
    """Both sides of `count` directions, and the Hessian's products with the pivots."""
    return 2 * count + PIVOTS * (count + 1)


def is_solved(count: int, share: float) -> bool:
    """Whether solving for a block's curvature along `count` directions costs at most a pass.

    Args:
        count: directions in a step.
        share: what an evaluation of the block costs, in full forward passes.
    """
    return 2 * PIVOTS <= count <= MOST_SOLVED and evaluations_to_solve(count) * share <= 1


def solved_perturbations(share: float) -> int | None:
    """As many as `is_solved` allows, at most `MOST_SOLVED`; None: not worth it."""
    found = (n for n in range(MOST_SOLVED, FEWEST_SOLVED - 1, -1) if is_solved(n, share))
    return next(found, None)


def directions(name: str, perturbations: Sequence[int]) -> tuple[int, ...]:
    """How many directions each block has in a step of estimator `name`."""
    if name in ("anchored", "mezo"):
        return tuple(perturbations)
    p1, p2 = perturbations
    return p1, p1 * p2


def default_perturbations(
    name: str,
    shares: Sequence[float],
    first: int = FIRST_PERTURBATIONS,
    most: int = MOST_PERTURBATIONS,
) -> tuple[int, ...]:
    """Perturbations by the rule: the cheaper a block's evaluations, the more directions it has.

    "anchored": P1 = `first`, and P_b = P1 / sqrt(C_b) rounded, at most `most`: of all ways to spend
    the same computation, directions in proportion to 1 / sqrt(cost) leave the least noise in all,
    if blocks are alike in what one direction's noise does (Neyman allocation). The others: P1 = 1,
    and P2 = C1 / C2 rounded to an even number, at least 2.

    Args:
        name: the estimator's; not "mezo".
        shares: C_b for the blocks from the second on: what an evaluation costs that replays the
            blocks before it, as a share of a full forward pass, in (0, 1].
        first: P1 of "anchored".
        most: of its later blocks.
    """
    if name == "anchored":
        later = (min(most, round(first * share**-0.5)) for share in shares)
        return (first, *later)
    return (1, *(max(2, 2 * round((1 - share) / share / 2)) for share in shares))


def default_lr_scales(directions: Sequence[int]) -> tuple[float, ...]:
    """Learning rates by the rule, over block 1's: D_b / D_1, so that every direction counts alike.

    A step adds `-lr_b g / D_b` along each of block b's D_b directions: with lr_b = lr D_b / D_1
    that is `-lr g / D_1` whatever its block. A block without directions has the rate of one.
    """
    first, *later = (max(1, count) for count in directions)
    return (1.0, *(count / first for count in later))


def known_shares(
    given: Sequence[float] | None, blocks: int, *, replayed: bool
) -> tuple[float, ...] | None:
    """The cost shares as given, checked; all 1 where nothing is replayed; else to be measured."""
    if given is not None:
        if len(given) != blocks - 1 or not all(0 < share <= 1 for share in given):
            raise ValueError(
                f"cost_shares is {given!r}; pass a number in (0, 1] for each block but the first"
            )
        return tuple(given) if replayed else (1.0,) * (blocks - 1)
    return None if replayed else (1.0,) * (blocks - 1)

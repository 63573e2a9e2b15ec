"""The estimators for two blocks: P2 directions of block 2 for each of P1 of block 1.

`balanced` evaluates block 2 on both sides of block 1's perturbation; `coupled` is our reading of
FedSPZO's abstract (arXiv 2502.10239), `coupled-loo` the same with the mean of the other directions
taken off each (leave one out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .points import HERE, Losses, Point, along, mean

Differences = tuple[float, list[float]]  # for a direction of block 1, for its directions of block 2


def side(p: int) -> int:
    """The sign of block 1's perturbation while block 2's direction p is evaluated: s alternates."""
    return -1 if p % 2 else +1


# Each is two functions of block 1's direction `a` and its directions `ps` of block 2: the points,
# in the order that moves the weights least, and the differences l(...) - l(...) that still have to
# be divided by eps.


def _balanced_one_points(a: int, ps: range) -> Iterator[Point]:
    for s in (+1, -1):
        yield along(a, s), HERE
        for p in ps:
            if side(p) == s:
                yield along(a, s), along(p)


def _balanced_one(loss: Losses, a: int, ps: range) -> Differences:
    base = {s: loss[along(a, s), HERE] for s in (+1, -1)}
    differences = [loss[along(a, side(p)), along(p)] - base[side(p)] for p in ps]
    return (base[+1] - base[-1]) / 2, differences


def _balanced_two_points(a: int, ps: range) -> Iterator[Point]:
    for s in (+1, -1):
        for p in ps:
            if side(p) == s:
                yield along(a, s), along(p, +1)
                yield along(a, s), along(p, -1)


def _balanced_two(loss: Losses, a: int, ps: range) -> Differences:
    plus = {p: loss[along(a, side(p)), along(p, +1)] for p in ps}
    minus = {p: loss[along(a, side(p)), along(p, -1)] for p in ps}
    means = {s: mean([(plus[p] + minus[p]) / 2 for p in ps if side(p) == s]) for s in (+1, -1)}
    return (means[+1] - means[-1]) / 2, [(plus[p] - minus[p]) / 2 for p in ps]


def _coupled_points(a: int, ps: range) -> Iterator[Point]:
    for s in (+1, -1):
        for p in ps[::s]:  # backwards on the way down: the turn is one term, -2 eps
            yield along(a, s), along(p, s)


def _coupled(loss: Losses, a: int, ps: range) -> Differences:
    difference = [
        (loss[along(a, +1), along(p, +1)] - loss[along(a, -1), along(p, -1)]) / 2 for p in ps
    ]
    return mean(difference), difference


def _coupled_loo(loss: Losses, a: int, ps: range) -> Differences:
    first, difference = _coupled(loss, a, ps)
    n = len(difference)
    # d - (sum - d) / (n - 1): the direction's difference less the mean of the others'
    return first, [(d - first) * n / (n - 1) for d in difference]


TWO_BLOCKS: dict[
    tuple[str, str],
    tuple[
        Callable[[int, range], Iterator[Point]],
        Callable[[Losses, int, range], Differences],
        int,  # the fewest directions of block 2 it is defined for
    ],
] = {
    ("balanced", "one"): (_balanced_one_points, _balanced_one, 1),
    ("balanced", "two"): (_balanced_two_points, _balanced_two, 2),
    ("coupled", "two"): (_coupled_points, _coupled, 1),
    ("coupled-loo", "two"): (_coupled_points, _coupled_loo, 2),
}

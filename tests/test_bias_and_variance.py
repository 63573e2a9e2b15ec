"""The estimators' mean and variance against DESIGN's table, on linear and quadratic functions.

Losses are tensors over many independent draws: the estimators' arithmetic is that of floats.
Statistical checks compare a mean over N draws with its theory at 6 standard errors: each is wrong
with a probability of about 2e-9 under the null, and draws come from fixed seeds anyway.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedspzo.estimators import Estimator, find

D1, D2, DRAWS, EPS = 24, 12, 10_000, (0.01, 0.02)

TWO_BLOCKS = [
    ("anchored", "one"),
    ("anchored", "two"),
    ("balanced", "one"),
    ("balanced", "two"),
    ("coupled", "two"),
]
EVERY = [*TWO_BLOCKS, ("mezo", "one"), ("mezo", "two")]


def estimates(estimator: Estimator, loss, dims=(D1, D2), draws=DRAWS):
    """For each draw, each block's mean of g z: tensors (draws, dim); loss takes two offsets."""
    generator = torch.Generator().manual_seed(20)
    z = [
        [torch.randn(draws, d, generator=generator, dtype=torch.float64) for _ in range(count)]
        for d, count in zip(dims, estimator.directions, strict=True)
    ]

    def at(point) -> Tensor:
        offsets = [
            sum((sign * eps * block[p] for p, sign in offset), torch.zeros_like(block[0]))
            for offset, block, eps in zip(point, z, EPS, strict=True)
        ]
        return loss(*offsets)

    losses = {point: at(point) for point in estimator.points()}
    gradients = estimator.gradients(losses, EPS)
    assert len(gradients) == 2
    return [
        torch.stack([g[:, None] * direction for g, direction in zip(gs, block, strict=True)]).mean(
            0
        )
        for gs, block in zip(gradients, z, strict=True)
    ]


def assert_mean(values: Tensor, theory: float | Tensor) -> None:
    """The mean over the first dimension is `theory`, within 6 standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - theory).abs() <= 6 * error + 1e-12).all()


def gradient(d: int, norm2: float) -> Tensor:
    g = torch.linspace(-1, 2, d, dtype=torch.float64)
    return g * math.sqrt(norm2) / g.norm()


def linear(n1: float, n2: float):
    a, b = gradient(D1, n1), gradient(D2, n2)
    return a, b, lambda s, t: s @ a + t @ b


@pytest.mark.parametrize(("name", "sides"), EVERY)
@pytest.mark.parametrize("p1", [1, 2])
def test_every_estimator_is_unbiased_on_a_coupled_quadratic(name, sides, p1):
    """Also with its own eps a block, and where block 2's gradient depends on block 1."""
    a, b, first_order = linear(2.0, 3.0)
    mix = torch.linspace(-1, 1, D1 * D2, dtype=torch.float64).reshape(D1, D2) / 4
    curve = torch.linspace(0, 2, D2, dtype=torch.float64)

    def loss(s: Tensor, t: Tensor) -> Tensor:
        return first_order(s, t) + ((s @ mix) * t).sum(-1) + (t * t) @ curve

    perturbations = (3, 3) if find(name).joint else (p1, 4)
    first, second = estimates(find(name)(sides=sides, perturbations=perturbations), loss)
    assert_mean(first, a)
    assert_mean(second, b)


def second_moment(n: float, other: float, d: int, p: int) -> float:
    """E|mean of (g.z + x) z over p directions|^2, x independent of mean square `other`."""
    return ((d + 2) * n + d * other) / p + (1 - 1 / p) * n


RATIO2 = (EPS[1] / EPS[0]) ** 2
# the other block's noise enters scaled by the two eps, which DESIGN takes equal
SCALED = {"coupled"}

# E|estimate|^2 of each block on a linear function of squared gradients n1 and n2, where DESIGN's
# table keeps the terms of order d. A step of `coupled` has one z1, and P2 independent z2.
VARIANCES = {
    ("anchored", "one"): lambda n1, n2, p: (
        second_moment(n1, 0, D1, 1),
        second_moment(n2, 0, D2, p),
    ),
    ("anchored", "two"): lambda n1, n2, p: (
        second_moment(n1, 0, D1, 1),
        second_moment(n2, 0, D2, p),
    ),
    ("balanced", "one"): lambda n1, n2, p: (
        second_moment(n1, 0, D1, 1),
        second_moment(n2, 0, D2, p),
    ),
    ("balanced", "two"): lambda n1, n2, p: (
        second_moment(n1, 0, D1, 1),
        second_moment(n2, 0, D2, p),
    ),
    ("coupled", "two"): lambda n1, n2, p: (
        second_moment(n1, n2 / p, D1, 1),
        second_moment(n2, n1, D2, p),
    ),
    ("mezo", "one"): lambda n1, n2, p: (
        second_moment(n1, n2 * RATIO2, D1, p),
        second_moment(n2, n1 / RATIO2, D2, p),
    ),
    ("mezo", "two"): lambda n1, n2, p: (
        second_moment(n1, n2 * RATIO2, D1, p),
        second_moment(n2, n1 / RATIO2, D2, p),
    ),
}


@pytest.mark.parametrize(("name", "sides"), EVERY)
@pytest.mark.parametrize("p", [2, 4])
def test_the_variances_are_those_of_the_table(name, sides, p):
    n1, n2 = 2.0, 3.0
    _, _, loss = linear(n1, n2)
    perturbations = (p, p) if find(name).joint else (1, p)
    estimator = find(name)(sides=sides, perturbations=perturbations)
    first, second = estimates(estimator, loss)
    if name in SCALED:
        theory = (
            VARIANCES[name, sides](n1, n2 * RATIO2, p)[0],
            VARIANCES[name, sides](n1 / RATIO2, n2, p)[1],
        )
    else:
        theory = VARIANCES[name, sides](n1, n2, p)
    assert_mean(first.square().sum(-1), theory[0])
    assert_mean(second.square().sum(-1), theory[1])


@pytest.mark.parametrize(("name", "sides"), TWO_BLOCKS)
def test_more_directions_of_block_1_divide_its_variance(name, sides):
    n1, n2, p = 2.0, 3.0, 2
    _, _, loss = linear(n1, n2)
    once, twice = (
        estimates(find(name)(sides=sides, perturbations=(p1, p)), loss)[0] for p1 in (1, 2)
    )
    spread = [(x - gradient(D1, n1)).square().sum(-1) for x in (once, twice)]
    assert_mean(spread[1], spread[0].mean() / 2)

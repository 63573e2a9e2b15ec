"""The estimators' mean and variance against DESIGN's table, on linear and quadratic functions.

Losses are tensors over many independent draws: the estimators' arithmetic is that of floats.
Statistical checks compare a mean over N draws with its theory at 6 standard errors: each is wrong
with a probability of about 2e-9 under the null, and draws come from fixed seeds anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fedspzo.estimators import Estimator, find
from fedspzo.estimators.anchored import WIDER, Anchored
from fedspzo.estimators.balanced import Balanced
from fedspzo.estimators.defaults import (
    FEDERATED_FIRST,
    FEDERATED_MOST,
    FIRST_PERTURBATIONS,
    MOST_PERTURBATIONS,
    NEWTON_PRODUCTS,
    can_take_newton_steps,
    default_lr_scales,
    newton_evaluations,
    newton_perturbations,
)
from fedspzo.estimators.float32 import coefficients, to_float32
from fedspzo.estimators.points import HERE, Point, along

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
    mezo = estimator.name == "mezo"
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
    assert not mezo or len(gradients) == 2
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

    perturbations = (3, 3) if name == "mezo" else (p1, 4)
    first, second = estimates(find(name)(sides=sides, perturbations=perturbations), loss)
    assert_mean(first, a)
    assert_mean(second, b)


def second_moment(n: float, other: float, d: int, p: int) -> float:
    """E|mean of (g.z + x) z over p directions|^2, x independent of mean square `other`."""
    return ((d + 2) * n + d * other) / p + (1 - 1 / p) * n


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
RATIO2 = (EPS[1] / EPS[0]) ** 2
# the other block's noise enters scaled by the two eps, which DESIGN takes equal
SCALED = {"coupled"}


@pytest.mark.parametrize(("name", "sides"), EVERY)
@pytest.mark.parametrize("p", [2, 4])
def test_the_variances_are_those_of_the_table(name, sides, p):
    n1, n2 = 2.0, 3.0
    _, _, loss = linear(n1, n2)
    perturbations = (p, p) if name == "mezo" else (1, p)
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


@pytest.mark.parametrize(
    ("name", "sides", "perturbations", "full", "replayed"),
    [
        ("anchored", "one", (2, 6), 3, 6),
        ("anchored", "two", (2, 6), 5, 12),
        ("anchored", "one", (0, 6), 1, 6),
        ("balanced", "one", (1, 6), 2, 6),
        ("balanced", "one", (1, 1), 2, 1),
        ("balanced", "two", (1, 6), 2, 10),
        ("coupled", "two", (1, 6), 2, 10),
        ("balanced", "one", (3, 4), 6, 12),
        ("mezo", "one", (5, 5), 6, 0),
        ("mezo", "two", (5, 5), 10, 0),
    ],
)
def test_the_cost_is_the_tables(name, sides, perturbations, full, replayed):
    """A point where block 1 stays is replayed, at C2 instead of 1 = C1 + C2."""
    points = find(name)(sides=sides, perturbations=perturbations).points()
    assert len(set(points)) == len(points)
    moves = 1 + sum(before[0] != after[0] for before, after in pairwise(points))
    assert moves == full
    assert len(points) - moves == replayed


@pytest.mark.parametrize("sides", ["one", "two"])
def test_block_2s_directions_alternate_between_the_sides(sides):
    points = find("balanced")(sides=sides, perturbations=(1, 5)).points()
    where = {second[0][0]: first[0][1] for first, second in points if second != HERE}
    assert where == {0: 1, 1: -1, 2: 1, 3: -1, 4: 1}


def test_formulas_on_given_losses():
    """The table, read off by hand, eps = (0.5, 0.25)."""
    eps = (0.5, 0.25)
    plus, minus = along(0, +1), along(0, -1)
    one = find("balanced")(sides="one", perturbations=(1, 2))
    loss = {
        (plus, HERE): 7.0, (plus, along(0)): 8.0, (minus, HERE): 3.0, (minus, along(1)): 1.0,
    }  # fmt: skip
    assert one.gradients(loss, eps) == ([4.0], [4.0, -8.0])
    assert one.loss(loss) == 5.0
    two = find("balanced")(sides="two", perturbations=(1, 2))
    loss = {
        (plus, along(0)): 8.0, (plus, along(0, -1)): 4.0,
        (minus, along(1)): 1.0, (minus, along(1, -1)): 3.0,
    }  # fmt: skip
    assert two.gradients(loss, eps) == ([4.0], [8.0, -4.0])
    assert two.loss(loss) == 4.0
    loss = {
        (plus, along(0)): 8.0, (plus, along(1)): 4.0,
        (minus, along(1, -1)): 1.0, (minus, along(0, -1)): 3.0,
    }  # fmt: skip
    coupled = find("coupled")(sides="two", perturbations=(1, 2))
    assert coupled.gradients(loss, eps) == ([4.0], [10.0, 6.0])
    base, first, second = (HERE, HERE), (along(0), HERE), (HERE, along(0))
    anchored = find("anchored")(sides="one", perturbations=(1, 1))
    loss = {base: 5.0, second: 4.0, first: 7.0}
    assert anchored.points() == list(loss)
    assert anchored.gradients(loss, eps) == ([4.0], [-4.0])
    assert anchored.loss(loss) == 5.0
    mezo = find("mezo")(sides="one", perturbations=(2,))
    loss = {(HERE,): 1.0, (along(0),): 2.0, (along(1),): 0.5}
    assert mezo.gradients(loss, (0.5,)) == ([2.0, -1.0],)
    assert mezo.loss(loss) == 1.0


def test_seeds_follow_from_the_seed_and_the_step():
    estimator = find("balanced")(sides="one", perturbations=(2, 3))
    first, second = estimator.seeds(9, 4)
    assert (len(first), len(second)) == estimator.directions == (2, 6)
    assert estimator.seeds(9, 4) == (first, second)
    assert not {*first, *second} & {s for block in estimator.seeds(9, 5) for s in block}
    one, other = find("mezo")(sides="two", perturbations=(3, 3)).seeds(9, 4)
    assert one == other


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("spsa", "two", (1, 2)), "estimator is 'spsa'; give one of anchored, balanced"),
        (("balanced", "three", (1, 2)), "sides is 'three'; pass 'one' or 'two'"),
        (("coupled", "one", (1, 2)), "sides is 'one', but 'coupled' is two-sided"),
        (("balanced", "two", (1, 1)), "perturbations of block 2 is 1.*at least 2"),
        (("balanced", "one", (1, 0)), "perturbations is 0; pass an int of at least 1"),
        (("mezo", "two", (True,)), "perturbations is True; pass an int"),
        (("mezo", "two", (1, 2)), r"perturbations are \(1, 2\), but 'mezo'"),
        (("balanced", "one", (2,)), r"needs two blocks, but there are 1; pass split\(model"),
        (("balanced", "one", (1, 2, 3)), "needs two blocks, but there are 3"),
        (("anchored", "one", (0, 0)), r"perturbations are \(0, 0\); give at least one"),
        (("anchored", "one", (1, -1)), "perturbations is -1; pass an int of at least 0"),
    ],
)
def test_bad_settings_are_named(settings, says):
    name, sides, perturbations = settings
    with pytest.raises(ValueError, match=says):
        find(name)(sides=sides, perturbations=perturbations)


@pytest.mark.parametrize("sides", ["one", "two"])
def test_curvature_is_seen_where_both_sides_are_evaluated(sides):
    """On 3 + g e + h e^2 / 2 along each direction it is the mean of h, and g is as exact."""
    slopes, bends = ((2.0,), (0.5, -4.0)), ((7.0,), (10.0, -2.0))
    estimator = find("anchored")(sides=sides, perturbations=(1, 2), mirrored=True)
    eps = (0.5, 0.25)
    losses = {}
    for point in estimator.points():
        losses[point] = 3.0
        for block, offset in enumerate(point):
            for p, sign in offset:
                e = sign * eps[block]
                losses[point] += slopes[block][p] * e + bends[block][p] * e * e / 2
    assert estimator.curvatures(losses, eps) == (7.0 if sides == "two" else None, 4.0)
    first = 2.0 if sides == "two" else 2.0 + 7.0 * eps[0] / 2
    assert estimator.gradients(losses, eps) == ([first], [0.5, -4.0])
    plain = replace(estimator, mirrored=False)
    assert len(plain.points()) == (1 + 3 if sides == "one" else 1 + 6)
    assert find("mezo")(sides=sides, perturbations=(1, 1)).curvatures({}, eps) == (None, None)


@pytest.mark.parametrize("sides", ["one", "two"])
def test_a_solved_block_shows_its_hessians_products_with_any_vector(sides):
    """Exact on a quadratic, as are its projected gradients, whatever the other blocks do."""
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(4, generator=generator, dtype=torch.float64)
    half = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    pivot = torch.randn(4, generator=generator, dtype=torch.float64)
    bends = half + half.T
    estimator = find("anchored")(sides=sides, perturbations=(2, 4), newton=1)
    eps = estimator.scales((0.5, 0.25))
    assert eps == (0.5, WIDER * 0.25)

    def at(point: Point) -> float:
        t = torch.zeros(4, dtype=torch.float64)
        for p, far in point[1]:
            t[p] += far * eps[1]
        return (3 + slope @ t + t @ bends @ t / 2).item() + sum(far for _, far in point[0])

    own = estimator.hessian_points()
    beside = estimator.hessian_points(pivot.tolist())
    assert len(own) - 1 + NEWTON_PRODUCTS * len(beside) == newton_evaluations(4)
    losses = {point: at(point) for point in own + beside}
    product = torch.tensor(estimator.hessian_product(losses, eps, pivot.tolist()))
    torch.testing.assert_close(product.double(), bends @ pivot)
    assert estimator.gradient(losses, eps, 1) == pytest.approx(slope.tolist())
    assert estimator.curvature(losses, eps, 1) == pytest.approx(bends.trace().item() / 4)
    points = estimator.points()
    assert points[: len(own)] == own
    assert len(points) - len(own) == (2 if sides == "one" else 4)
    first, second = estimator.gradients({point: at(point) for point in points}, eps)
    assert first == [2.0, 2.0]
    assert second == pytest.approx(slope.tolist())


def test_a_head_is_solved_along_as_many_directions_as_cost_a_pass():
    counts = [newton_perturbations(share) for share in (1e-5, 0.0076, 0.01, 0.0294, 0.0295, 1.0)]
    assert counts == [32, 32, 24, 8, None, None]
    assert newton_evaluations(8) == 16 + 18
    assert can_take_newton_steps(8, 1 / 34)
    assert not can_take_newton_steps(8, 1 / 33)
    assert can_take_newton_steps(4, 0.0)
    assert not can_take_newton_steps(3, 0.0)  # two products with its Hessian would be all of it


def test_coefficients_are_float32_means():
    assert coefficients([0.5, -1.0], 0.25) == (-0.0625, 0.125)
    (value,) = coefficients([0.1], 0.3)
    assert value == to_float32([-0.03])[0] != -0.03
    assert to_float32([1e300]) == (math.inf,)


@pytest.mark.parametrize(
    ("share", "count"), [(0.125, 8), (0.2, 4), (0.1, 8), (0.5, 2), (1.0, 2), (0.04, 24)]
)
def test_p2_is_the_cost_ratio_rounded_to_an_even_number(share, count):
    assert Balanced.default_perturbations([share], 3, 32) == (1, count)


def test_perturbations_leave_the_least_noise_for_their_cost():
    """Sum 1 / P_b at sum P_b C_b: the rule's against its neighbours, costs matched by scaling."""
    shares = (1.0, 1 / 4, 1 / 100)
    counts = Anchored.default_perturbations(shares[1:], FIRST_PERTURBATIONS, MOST_PERTURBATIONS)
    assert counts == (3, 6, 30)

    def noise(counts: Sequence[float]) -> float:
        cost = sum(c * p for c, p in zip(shares, counts, strict=True))
        return cost * sum(1 / p for p in counts)

    for moved in ((6, 6, 30), (3, 9, 30), (3, 3, 30), (3, 6, 20), (3, 6, 40), (3, 12, 300)):
        assert noise(counts) < noise(moved)


def test_perturbations_by_the_rule_have_bounds():
    assert Anchored.default_perturbations((1.0, 0.9, 1e-6), 3, 32) == (3, 3, 3, 32)
    of_many = Anchored.default_perturbations((0.25, 1e-6), FEDERATED_FIRST, FEDERATED_MOST)
    assert of_many == (1, 2, FEDERATED_MOST)


def test_by_the_rule_every_direction_counts_alike():
    assert default_lr_scales((2, 16, 64)) == (1.0, 8.0, 32.0)
    assert default_lr_scales((0, 16)) == (1.0, 16.0)
    assert default_lr_scales((2, 0, 16)) == (1.0, 0.5, 8.0)  # a rate above 0 all the same


def test_three_blocks_are_estimated_one_at_a_time():
    """Each block's evaluations leave the others as they are, and follow theta's own."""
    estimator = find("anchored")(sides="one", perturbations=(1, 2, 3))
    points = estimator.points()
    assert points[0] == (HERE,) * 3
    moved = [[block for block, offset in enumerate(point) if offset != HERE] for point in points]
    assert moved == [[], [2], [2], [2], [1], [1], [0]]
    slopes = (2.0, 3.0, 5.0)
    eps = (0.5, 0.25, 0.125)
    loss = {
        point: sum(
            s * sign * e * (1 + d)
            for s, offset, e in zip(slopes, point, eps, strict=True)
            for d, sign in offset
        )
        for point in points
    }
    assert estimator.gradients(loss, eps) == ([2.0], [3.0, 6.0], [5.0, 10.0, 15.0])

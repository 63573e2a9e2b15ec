"""Where the estimators evaluate a loss, and what they make of the losses there."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedspzo.estimators import find
from fedspzo.estimators.anchored import WIDER
from fedspzo.estimators.defaults import NEWTON_PRODUCTS, newton_evaluations
from fedspzo.estimators.float32 import coefficients, to_float32
from fedspzo.estimators.points import HERE, Point, along


def test_gradients_and_losses_are_those_worked_out_by_hand():
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


def test_coefficients_are_float32_means():
    assert coefficients([0.5, -1.0], 0.25) == (-0.0625, 0.125)
    (value,) = coefficients([0.1], 0.3)
    assert value == to_float32([-0.03])[0] != -0.03
    assert to_float32([1e300]) == (math.inf,)


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
def test_an_estimator_costs_what_the_table_says(name, sides, perturbations, full, replayed):
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


@pytest.mark.parametrize("sides", ["one", "two"])
def test_curvature_is_seen_where_both_sides_are_evaluated(sides):
    """On 3 + g e + h e^2 / 2 along each direction it is the mean of h, and g is as exact."""
    slopes, bends = ((2.0,), (0.5, -4.0)), ((7.0,), (10.0, -2.0))
    estimator = find("anchored")(sides=sides, perturbations=(1, 2), mirrored=(1,))
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
    plain = replace(estimator, mirrored=())
    assert len(plain.points()) == (1 + 3 if sides == "one" else 1 + 6)
    assert find("mezo")(sides=sides, perturbations=(1, 1)).curvatures({}, eps) == (None, None)


@pytest.mark.parametrize("sides", ["one", "two"])
def test_hessian_products_of_a_newton_block_are_exact_on_a_quadratic(sides):
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

    points = estimator.points()
    before = points.index(((), ()))  # block 1's, so that what is captured at theta lasts
    assert before == (2 if sides == "one" else 4)
    own = points[before:]
    beside = estimator.hessian_points(pivot.tolist())
    assert len(own) - 1 + NEWTON_PRODUCTS * len(beside) == newton_evaluations(4)
    losses = {point: at(point) for point in own + beside}
    product = torch.tensor(estimator.hessian_product(losses, eps, beside))
    torch.testing.assert_close(product.double(), bends @ pivot)
    assert estimator.gradient(losses, eps, 1) == pytest.approx(slope.tolist())
    assert estimator.curvature(losses, eps, 1) == pytest.approx(bends.trace().item() / 4)
    first, second = estimator.gradients({point: at(point) for point in points}, eps)
    assert first == [2.0, 2.0]
    assert second == pytest.approx(slope.tolist())


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

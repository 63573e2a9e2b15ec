"""How many directions each block gets by default, and how its learning rate follows from that."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fedspzo.estimators.anchored import Anchored
from fedspzo.estimators.balanced import Balanced
from fedspzo.estimators.defaults import (
    FEDERATED_FIRST,
    FEDERATED_MOST,
    FIRST_PERTURBATIONS,
    MOST_PERTURBATIONS,
    can_take_newton_steps,
    default_lr_scales,
    newton_evaluations,
    newton_perturbations,
)


@pytest.mark.parametrize(
    ("share", "count"), [(0.125, 8), (0.2, 4), (0.1, 8), (0.5, 2), (1.0, 2), (0.04, 24)]
)
def test_p2_is_the_cost_ratio_rounded_to_an_even_number(share, count):
    assert Balanced.default_perturbations([share], 3, 32) == (1, count)


def test_default_perturbations_leave_the_least_noise_for_their_cost():
    """Sum 1 / P_b at sum P_b C_b: the rule's against its neighbours, costs matched by scaling."""
    shares = (1.0, 1 / 4, 1 / 100)
    counts = Anchored.default_perturbations(shares[1:], FIRST_PERTURBATIONS, MOST_PERTURBATIONS)
    assert counts == (3, 6, 30)

    def noise(counts: Sequence[float]) -> float:
        cost = sum(c * p for c, p in zip(shares, counts, strict=True))
        return cost * sum(1 / p for p in counts)

    for moved in ((6, 6, 30), (3, 9, 30), (3, 3, 30), (3, 6, 20), (3, 6, 40), (3, 12, 300)):
        assert noise(counts) < noise(moved)


def test_default_perturbations_have_bounds():
    assert Anchored.default_perturbations((1.0, 0.9, 1e-6), 3, 32) == (3, 3, 3, 32)
    of_many = Anchored.default_perturbations((0.25, 1e-6), FEDERATED_FIRST, FEDERATED_MOST)
    assert of_many == (1, 2, FEDERATED_MOST)


def test_default_learning_rates_weigh_every_direction_alike():
    assert default_lr_scales((2, 16, 64)) == (1.0, 8.0, 32.0)
    assert default_lr_scales((0, 16)) == (1.0, 16.0)
    assert default_lr_scales((2, 0, 16)) == (1.0, 0.5, 8.0)  # a rate above 0 all the same


def test_a_head_is_solved_along_as_many_directions_as_cost_a_pass():
    counts = [newton_perturbations(share) for share in (1e-5, 0.0076, 0.01, 0.0294, 0.0295, 1.0)]
    assert counts == [32, 32, 24, 8, None, None]
    assert newton_evaluations(8) == 16 + 18
    assert can_take_newton_steps(8, 1 / 34)
    assert not can_take_newton_steps(8, 1 / 33)
    assert can_take_newton_steps(4, 0.0)
    assert not can_take_newton_steps(3, 0.0)  # two products with its Hessian would be all of it

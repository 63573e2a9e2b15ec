"""Learning rates that follow from what blocks have shown."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from auto_lr_toys import Bowl, policy, rates_after, two_blocks

from fedspzo import SPZO
from fedspzo.auto_lr.block_statistics import BlockStatistics, root_mean_square
from fedspzo.auto_lr.rates import RateSettings, rates
from fedspzo.estimators.float32 import coefficients
from fedspzo_kernels import noise


def step_share(rate: float, gradient: float, directions: int, weights: float) -> float:
    """The norm of an update along random directions over that of the weights."""
    return rate * gradient / math.sqrt(directions) / weights


def test_a_step_moves_a_block_by_a_few_percent_and_a_new_head_by_a_quarter():
    led, last = rates_after(policy(2.0, 0.5), [[10.0] * 4, [1.0]])
    assert step_share(led, 10, 4, 2.0) == pytest.approx(0.045)
    assert step_share(last, 1, 1, 0.5) == pytest.approx(0.25)
    (only,) = rates_after(policy(2.0), [[10.0] * 4])
    assert step_share(only, 10, 4, 2.0) == pytest.approx(0.045)


@pytest.mark.parametrize(
    ("directions", "trace", "last"),
    [
        (8, 64.0, 8 / 64 / 32),  # a 32nd of what is best for one step
        (64, 64.0, 1 / 64),  # no more than what is stable where all of it is in one direction
        (8, -64.0, 8 / 64 / 32),  # few directions may show either sign
        (1, 1e-3, 0.125),  # one next to 0 bounds nothing: a step of a quarter of the weights
    ],
)
def test_curvature_that_is_seen_bounds_a_rate(directions, trace, last):
    gradients = [[10.0] * 4, [1.0] * directions]
    found = rates_after(policy(2.0, 0.5), gradients, None, trace)
    assert found == pytest.approx((0.018, last))
    assert rates_after(policy(2.0, 0.5), gradients, -1.0, trace) == found


def test_a_block_that_does_not_move_keeps_the_rate_to_start_with():
    assert rates_after(policy(2.0, 0.5), [[10.0] * 4, []])[1] == 1e-4


def test_a_step_at_the_bound_is_that_share_of_the_blocks_weights():
    weights, gradients = torch.full((10**5,), 2.0), [3.0, -4.0]
    (rate,) = rates_after(policy(2.0), [gradients])
    along = coefficients(gradients, rate)
    update = sum(c * noise(10**5, 5, seed) for seed, c in enumerate(along))
    assert (update.norm() / weights.norm()).item() == pytest.approx(0.045, rel=0.02)


def test_groups_that_are_no_blocks_are_bounded_like_an_only_block():
    """As with and without weight decay; none of them is a head that may lead."""
    model = Bowl()
    halves = [{"params": list(layer.parameters())} for layer in model.layers[:2]]
    optimizer = SPZO(halves, lr="auto")
    optimizer.step(model)
    gradient = abs(optimizer.last_step.gradients[0][0])
    expected = 0.045 * 8 / gradient
    found = [group["lr"] for group in optimizer.param_groups]
    assert found == pytest.approx([optimizer.auto.factor * expected] * 2, rel=1e-3)
    anchored = SPZO(halves, lr="auto", estimator="anchored", perturbations=(1, 1))
    anchored.step(model)
    assert [len(block) for block in anchored.last_step.seeds] == [1, 1]


def test_a_block_of_zeros_is_bounded_by_curvature_alone():
    assert rates_after(policy(2.0, 0.0), [[10.0], [1.0]], None, 64.0)[1] == 1 / 64 / 32
    assert rates_after(policy(0.0), [[10.0]]) == (1e-4,)


def test_rates_are_learned_from_the_first_eight_turns_means_and_then_kept():
    known = policy(2.0, 0.5)
    for step in range(8):
        assert known.learning((1, 1)) == (0, 1)
        gradient, trace = (0.0, 96.0) if step % 2 else (10.0, 32.0)
        found = rates_after(known, [[gradient], [1.0]], None, trace)
    mean = math.sqrt(10.0**2 / 2)
    assert step_share(found[0], mean, 1, 2.0) == pytest.approx(0.045)
    assert found[1] == pytest.approx(1 / 64 / 32)
    assert known.learning((1, 1)) == ()
    assert rates_after(known, [[1.0], [1.0]], None, 1.0) == found


def test_in_the_long_run_a_led_blocks_rate_falls_so_that_all_its_noise_has_a_bound():
    several, alone = policy(2.0, 0.5), policy(2.0)
    found = []
    for _ in range(160):
        led, last = rates_after(several, [[10.0], [1.0]], None, 64.0)
        found.append((led, last, *rates_after(alone, [[10.0]])))
    assert found[7] == found[19] == pytest.approx((0.009, 1 / 64 / 32, 0.009))
    assert found[79] == pytest.approx((0.009 / 4**0.75, *found[7][1:]))
    power = math.log2(found[79][0] / found[159][0])
    assert 1 / 2 < power <= 1  # their sum has no bound, that of their squares has one
    for _ in range(5):  # it does not fall while it waits
        assert rates_after(several, [[], [1.0]], None, 64.0)[0] == led


def test_a_rate_stays_within_its_size_when_gradients_grow():
    """Noise that makes gradients larger must not make for more noise."""
    known = policy(2.0)
    rates_after(known, [[10.0]], turns=8)
    (rate,) = rates_after(known, [[1000.0]], turns=60)
    assert step_share(rate, 1000, 1, 2.0) == pytest.approx(0.045, rel=1e-3)
    (rate,) = rates_after(known, [[1.0]], turns=60)
    assert step_share(rate, 10, 1, 2.0) == pytest.approx(0.045)


def test_a_turn_counts_a_quarter_in_what_the_turns_show_lately():
    seen = BlockStatistics(2.0)
    lately = []
    for square in (8.0, 8.0, 0.0, 0.0):
        seen.add_turn(1, square, None)
        lately.append(seen.smoothed_square)
    assert lately == [8.0, 8.0, 6.0, 4.5]


@pytest.mark.parametrize("last_leads", [True, False])
def test_one_batch_with_an_outlier_moves_a_block_at_most_twice_as_far_as_others_may(last_leads):
    """Its own gradient is a quarter of the mean square that sets the rate."""
    known, costs = policy(2.0, 0.5, last_leads=last_leads), (1.0, 0.04)
    usual, outlier = ([10.0, -10.0], [1.0, 1.0]), ([-300.0, 400.0], [40.0, 30.0])
    for _ in range(20):
        known.learn(usual, (None, None), costs)
    assert known.learn(outlier, (None, None), costs) == outlier
    shares = (0.045 * (20 / 21) ** 0.75, 0.25) if last_leads else (0.045, 0.045)
    for block, (share, size) in enumerate(zip(shares, (2.0, 0.5), strict=True)):
        along = coefficients(outlier[block], known.rates[block])
        change = math.hypot(*along)  # root mean square, of a weight
        assert share * size < change < 2 * share * size


def test_a_step_without_finite_gradients_teaches_nothing():
    known = policy(2.0)
    before = copy.deepcopy(known)
    assert rates_after(known, [[math.nan]]) == (1e-4,)
    assert known == before


def test_what_halved_the_rates_halves_those_still_to_be_learned():
    known = policy(2.0, 0.5)
    led, last = rates_after(known, [[10.0], []])
    known.factor /= 2
    assert known.rates == (led / 2, last / 2)
    assert rates_after(known, [[10.0], [1.0]])[0] == led / 2


def test_the_mean_over_clients_may_move_farther_and_a_rounds_steps_each_count_as_a_turn():
    """A bound on what is stable stays."""
    blocks = [BlockStatistics(2.0) for _ in range(2)]
    for seen in blocks:
        for _ in range(40):
            seen.add_turn(1, 100.0, None)

    def found(**settings: float) -> tuple[float, ...]:
        return rates(blocks, RateSettings(last_leads=True, **settings))

    one = found()
    assert found(clients=9.0) == pytest.approx([3 * rate for rate in one])
    led, last = found(local_steps=4)  # the 32 turns after the first eight count four times
    assert led == pytest.approx(one[0] * (40 / (40 + 3 * 32)) ** 0.75)
    assert last == one[1]
    assert found(clients=4.0, local_steps=4) == (led, last)
    stiff = BlockStatistics(2.0)
    stiff.add_turn(64, 1e-9, 64.0)
    (rate,) = rates([stiff], RateSettings(last_leads=False, clients=9.0))
    assert rate == 1 / 64


@pytest.mark.parametrize("curve", [1e-3, 1.0, 1e3])
def test_the_rate_found_fits_the_curvature(curve):
    """Within the range in which a quadratic's loss falls: above 0 and below 2 P / trace."""
    model = Bowl(curve)
    optimizer = SPZO(two_blocks(model), lr="auto", perturbations=(2, 4))
    losses = [optimizer.step(model) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]
    rate = optimizer.param_groups[0]["lr"]
    assert 1 / 256 < rate * curve * 12 / 2 < 2


def test_the_size_of_large_weights_is_taken_in_parts(monkeypatch):
    tensors = [torch.randn(37, 3), torch.randn(5, 2).t(), torch.tensor(2.0), torch.empty(0)]
    whole = root_mean_square(tensors)
    monkeypatch.setattr("fedspzo.auto_lr.block_statistics.PART", 7)
    assert root_mean_square(tensors) == pytest.approx(whole, rel=1e-6)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    assert whole == pytest.approx(flat.square().mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_last_block_of_zeros_has_no_size_that_its_perturbations_gave_it(evaluation):
    model = Bowl()
    with torch.no_grad():
        model.layers[2].shift.zero_()
    optimizer = SPZO(two_blocks(model), lr="auto", perturbations=(2, 4), evaluation=evaluation)
    optimizer.step(model)
    assert optimizer.auto.blocks[1].weight_rms == 0.0
    assert optimizer.auto.blocks[0].weight_rms == pytest.approx(8.0)

"""The mechanism: what is clipped, what is added, what is counted."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from private_toys import MODERATE, NOISELESS, everything
from torch import Tensor

from fedspzo import privacy
from fedspzo.privacy import Mechanism, Privacy


def total(rows: Tensor, clip: float = 1.0) -> Tensor:
    """The clipped sum, all but without noise."""
    mechanism = everything(NOISELESS, len(rows), clip)
    mechanism.sample(len(rows))
    return torch.tensor(mechanism.release(rows), dtype=torch.float64) * len(rows)


def test_an_example_is_cut_to_the_clip_as_one_vector() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [-30.0, 40.0]])
    expected = torch.tensor([0.6 + 0.3 - 0.6, 0.8 + 0.4 + 0.8], dtype=torch.float64)
    torch.testing.assert_close(total(rows), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(total(rows, 100.0), rows.double().sum(0), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_example_that_is_not_finite_counts_as_zeros(value: float) -> None:
    rows = torch.tensor([[0.5, 0.0], [value, 0.1]])
    torch.testing.assert_close(total(rows), torch.tensor([0.5, 0.0]).double())


numbers = st.floats(-1e6, 1e6, width=32) | st.just(math.inf) | st.just(math.nan)

vectors = st.integers(1, 5).flatmap(
    lambda d: st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=2, max_size=6)
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(vectors, st.floats(1e-3, 1e3))
def test_one_example_changes_the_sum_by_the_clip_at_most(
    rows: list[list[float]], clip: float
) -> None:
    # The property on which all accounting rests: with or without an example, and twice as much
    # where one takes another's place.
    batch, zero = torch.tensor(rows), torch.zeros(1, len(rows[0]))
    with_it, without = total(batch, clip), total(torch.cat([batch[:-1], zero]), clip)
    assert torch.dist(with_it, without) <= clip * (1 + 1e-6)
    replaced = total(torch.cat([batch[:-1], -batch[:1]]), clip)
    assert torch.dist(with_it, replaced) <= 2 * clip * (1 + 1e-6)


def test_the_noise_has_the_stated_deviation_and_the_coordinates_are_independent() -> None:
    mechanism = everything(2.0, 4, clip=3.0)
    draws = []
    for _ in range(4000):
        mechanism.sample(4)
        draws.append(mechanism.release(torch.zeros(4, 3)))
    values = np.array(draws) * 4  # of the sum
    # 4000 draws: the standard error of a mean is 6 / 63, of a deviation 6 / 89
    assert np.abs(values.mean(0)).max() < 0.5
    assert np.abs(values.std(0) - 6.0).max() < 0.35
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.08
    kurtosis = ((values / values.std(0)) ** 4).mean(0)
    assert np.abs(kurtosis - 3).max() < 0.4


def test_a_batch_holds_each_example_independently() -> None:
    mechanism = Mechanism(Privacy(clip=1, noise_multiplier=1), 50, random=Random(0))
    member = np.zeros((4000, 50))
    for row in member:
        row[mechanism.sample(10)] = 1
    assert np.abs(member.mean(0) - 0.2).max() < 0.03  # standard error 0.006
    assert abs(member.sum(1).var() - 50 * 0.2 * 0.8) < 1.0  # binomial: not a fixed number


def test_the_sum_is_divided_by_the_mean_size_of_a_batch() -> None:
    mechanism = Mechanism(Privacy(clip=9, noise_multiplier=NOISELESS), 50, random=Random(0))
    for _ in range(5):
        size = len(mechanism.sample(10))
        assert mechanism.release(torch.ones(size, 1)) == [pytest.approx(size / 10)]


def test_secret_randomness_has_no_seed() -> None:
    # Python's and torch's generators are seeded alike; nobody may guess noise or batch from that.
    noise, batches = set(), set()
    for _ in range(4):
        torch.manual_seed(0)
        np.random.seed(0)
        mechanism = Mechanism(MODERATE, 64)
        batch = mechanism.sample(32)
        batches.add(tuple(batch))
        noise.add(tuple(mechanism.release(torch.zeros(len(batch), 2))))
    assert len(noise) == len(batches) == 4


@pytest.mark.parametrize(
    ("batch_size", "noise", "steps", "expected"),
    [(1, 1.0, 1000, 2.1078), (100, 5.0, 100, 10.8017), (20, 2.0, 100, 5.5552)],
)
def test_epsilon_is_that_of_dp_accounting(
    batch_size: int, noise: float, steps: int, expected: float
) -> None:
    mechanism = Mechanism(Privacy(clip=7.0, noise_multiplier=noise), 100)
    assert mechanism.epsilon() == 0
    mechanism.count(batch_size, steps)
    assert mechanism.epsilon() == pytest.approx(expected, abs=1e-3)
    # dp-accounting's own orders: ours leave some out, which can only make it larger
    event = dp_accounting.GaussianDpEvent(noise)
    accountant = RdpAccountant()
    accountant.compose(dp_accounting.PoissonSampledDpEvent(batch_size / 100, event), steps)
    assert accountant.get_epsilon(1e-5) <= mechanism.epsilon() < 1.02 * accountant.get_epsilon(1e-5)


def test_each_release_is_counted_at_the_rate_it_was_drawn_with() -> None:
    mechanism, other = (Mechanism(MODERATE, 40, random=Random(0)) for _ in range(2))
    for size in (4, 4, 20, 400):
        mechanism.release(torch.zeros(len(mechanism.sample(size)), 2))
    for size, count in ((4, 2), (20, 1), (40, 1)):  # a batch is at most everything
        other.count(size, count)
    assert mechanism.epsilon() == other.epsilon()
    assert mechanism.epsilon() > 0


def test_a_batch_is_released_once_and_whole() -> None:
    mechanism = Mechanism(MODERATE, 40, random=Random(0))
    with pytest.raises(ValueError, match="call sample before each step"):
        mechanism.release(torch.zeros(4, 2))
    size = len(mechanism.sample(20))
    with pytest.raises(ValueError, match=f"the sample has {size} examples"):
        mechanism.release(torch.zeros(size + 1, 2))
    mechanism.release(torch.zeros(size, 2))
    with pytest.raises(ValueError, match="call sample before each step"):
        mechanism.release(torch.zeros(size, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0; give a number from 1e-09 to 1e\\+09"),
        ({"clip": "1"}, "clip is '1'"),
        ({"noise_multiplier": math.inf}, "noise_multiplier is inf"),
        ({"noise_multiplier": -1}, "noise_multiplier is -1"),
        ({"delta": 1.0}, "delta is 1.0; give a number from 1e-50 to 0.5"),
        ({"delta": True}, "delta is True"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Privacy(**{"clip": 1.0, "noise_multiplier": 1.0, **changes})


def test_a_mechanism_that_can_promise_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"give less than 0\.01"):
        Mechanism(replace(MODERATE, delta=0.01), 100)
    with pytest.raises(ValueError, match="examples is 0"):
        Mechanism(MODERATE, 0)
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fedspzo\[privacy\]'"):
        Mechanism(MODERATE, 100)

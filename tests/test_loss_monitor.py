"""Losses from which divergence is told from noise."""

from __future__ import annotations

import random

import pytest

from fedspzo.auto_lr.loss_monitor import LossMonitor


def diverged(monitor: LossMonitor, *losses: float) -> bool:
    """Whether any of the losses, one after another, is said to diverge."""
    return any(monitor.observe(loss) == "diverged" for loss in losses)


def alarms(spread: float, steps: int, seed: int) -> int:
    """How often losses about 0.7 are said to diverge that only vary, by this standard deviation."""
    draw, monitor, count = random.Random(seed), LossMonitor(), 0
    for _ in range(steps):
        if diverged(monitor, draw.gauss(0.7, spread * 0.7)):
            count += 1
            monitor.restart()
    return count


@pytest.mark.parametrize("spread", [0.1, 0.2, 0.3, 0.5])
def test_noise_is_no_divergence(spread):
    """Small batches' losses vary by a third: rates would be halved for nothing, for ever."""
    assert sum(alarms(spread, 2000, seed) for seed in range(4)) <= 1


def test_losses_about_zero_that_vary_are_no_divergence():
    draw = random.Random(0)
    assert not diverged(LossMonitor(), *(draw.gauss(0.0, 1.0) for _ in range(1000)))


def test_absurd_losses_are_divergence_and_no_error():
    monitor = LossMonitor()
    assert not diverged(monitor, *[0.7] * 20)
    assert diverged(monitor, 1e200, 1e307, 0.7)
    for _ in range(40):
        monitor.observe(0.7)


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3])
def test_divergence_is_told_from_noise(spread):
    """Losses that grow by 3 % a step are noticed before they have tripled, for all the noise."""
    for seed in range(20):
        draw, monitor = random.Random(seed), LossMonitor()
        mean = 0.7
        assert not diverged(monitor, *(draw.gauss(mean, spread * mean) for _ in range(100)))
        while not diverged(monitor, draw.gauss(mean, spread * mean)):
            mean *= 1.03
            assert mean < 3 * 0.7


def test_one_lucky_batch_is_no_best_loss_to_fall_behind():
    monitor = LossMonitor()
    assert not diverged(monitor, 0.35, 0.66, 0.45, 0.61, 0.9, 0.66, 0.5, 0.7)
    assert diverged(monitor, *[3.0] * 3)


def test_losses_that_double_are_noticed_in_the_first_steps_too():
    monitor = LossMonitor()
    noticed = [monitor.observe(loss) == "diverged" for loss in (0.7, 1.4, 2.8, 5.6)]
    assert noticed == [False, False, True, True]


def test_negative_losses_diverge_by_rising_too():
    monitor = LossMonitor()
    assert not diverged(monitor, *(-10 + 0.1 * (-1) ** number for number in range(40)))
    assert diverged(monitor, *[-2.0] * 20)


def test_a_slow_drift_is_noticed_a_tenth_above_the_best_and_of_the_first_losses():
    monitor = LossMonitor()
    assert not diverged(monitor, *(1.0 - 0.006 * step for step in range(100)))
    best, first = monitor.smoothed, sum(1.0 - 0.006 * step for step in range(8)) / 8
    for step in range(300):
        if diverged(monitor, best + 0.001 * step):
            break
    bound = 0.1 * best + 0.1 * first
    assert bound < monitor.smoothed - best < bound + 0.001


def test_the_best_loss_is_told_and_a_restart_forgets_it():
    monitor = LossMonitor()
    assert {monitor.observe(1.0) for _ in range(20)} == {"best"}
    assert monitor.observe(1.01) == "near"
    assert monitor.observe(0.5) == "best"
    monitor.restart()
    assert monitor.observe(3.0) == "best"

"""Newton steps that are held to what their gradients promise."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from auto_lr_toys import newton_run
from torch import nn
from torch.nn import functional as F

from fedspzo import SPZO, split
from fedspzo.auto_lr.trust_ratio import trusted_share
from fedspzo.estimators.defaults import newton_evaluations
from fedspzo.estimators.float32 import coefficients


def slope(step: list[float]) -> float:
    """The loss along one direction of gradient 1, which rises beyond a step of 0.3."""
    (place,) = step
    return 1 + place if place > -0.3 else 2.0


def test_a_step_is_halved_until_it_keeps_its_promise():
    share, ratio = trusted_share([1.0], [-1.0], 1.0, slope)
    assert share == 0.25
    assert ratio == pytest.approx(1.0)
    assert trusted_share([1.0], [-0.25], 1.0, slope)[0] == 1.0


def test_the_promise_is_the_derivative_along_the_step():
    share, ratio = trusted_share([2.0, -1.0], [-0.5, 0.25], 1.0, lambda _: 1 - 0.3)
    assert share == 1.0
    assert ratio == pytest.approx(0.3 / 1.25)


def test_a_loss_that_is_not_finite_is_not_trusted():
    assert (
        trusted_share([1.0], [-1.0], 1.0, lambda s: math.nan if s[0] < -0.1 else 0.9)[0] == 1 / 16
    )


def test_a_step_that_the_loss_does_not_show_is_made():
    """As one of a low-precision model near its optimum, whose losses differ by rounding alone."""
    assert trusted_share([1.0], [-1e-9], 1.0, lambda _: 1.0) == (1.0, None)
    coarse = lambda s: 1.0 + (0.01 if s[0] < -1e-4 else 0.0)  # noqa: E731
    assert trusted_share([1.0], [-1e-3], 1.0, coarse) == (1 / 16, None)


def test_every_newton_step_is_tried_at_the_cost_of_the_last_block():
    _, optimizer, loss = newton_run(0)
    joined = 0
    for _ in range(20):  # block 1 joins after 16
        optimizer.step(loss)
        report = optimizer.last_step
        assert report.ratio >= 0.1
        moved = 2 * 2 if report.gradients[0] else 0
        evaluations = len(report.losses) - 1 - moved
        assert evaluations > newton_evaluations(8)
        assert report.forwards == pytest.approx(1 + moved + 0.01 * evaluations)
        joined += bool(moved)
    assert joined


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_without_trust_the_last_block_does_not_move(evaluation):
    """Where even the smallest step raises its batch's loss, it is not made."""
    model, optimizer, loss = newton_run(0, evaluation=evaluation)
    before = copy.deepcopy(model.state_dict())
    calls, points = 0, 2 + 1 + newton_evaluations(8)  # the optimizer's first look, and its own

    def evaluate() -> float:
        nonlocal calls
        calls += 1
        return loss().item() + (1e3 if calls > points else 0.0)

    optimizer.step(evaluate)
    report = optimizer.last_step
    assert report.ratio < 0.1
    assert len(report.losses) == 1 + newton_evaluations(8) + 32
    assert not any(c for block in report.coefficients for c in block)
    assert not any(g for block in report.followed for g in block)
    assert optimizer.auto.factor == 1.0
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)


def test_what_is_reported_is_the_step_that_was_made():
    _, optimizer, loss = newton_run(0, evaluation="layerwise")
    calls, points = 0, 2 + 1 + newton_evaluations(8)

    def evaluate() -> float:
        nonlocal calls
        calls += 1
        return loss().item() + (1e3 if points < calls <= points + 2 else 0.0)

    optimizer.step(evaluate)
    report = optimizer.last_step
    assert len(report.losses) == 1 + newton_evaluations(8) + 3  # after two halvings
    assert report.coefficients[1] == pytest.approx(
        coefficients(report.followed[1], report.lr[1]), rel=1e-6
    )
    promise = sum(c * g for c, g in zip(report.coefficients[1], report.gradients[1], strict=True))
    fall = report.loss - loss().item()
    assert fall / -promise == pytest.approx(report.ratio, rel=1e-3)


def test_an_interrupted_trial_leaves_what_was_known():
    """A step that is tried again is the step it would have been."""

    def trained(*, interrupt: bool) -> tuple[torch.Tensor, dict]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
        x, y = torch.randn(16, 6), torch.arange(16) % 3
        optimizer = SPZO(
            split(model, at=-1, example={"input": x}),
            lr="auto",
            perturbations=(0, 4),
            cost_shares=(0.01,),
            evaluation="layerwise",
        )
        calls = 0

        def loss() -> float:
            nonlocal calls
            calls += 1
            if interrupt and calls == 1 + newton_evaluations(4) + 1:  # the trial
                raise KeyboardInterrupt
            return F.cross_entropy(model(x), y).item()

        done, before = 0, [group["lr"] for group in optimizer.param_groups]
        interrupted = 0
        while done < 3:
            try:
                optimizer.step(loss)
                done += 1
            except KeyboardInterrupt:
                interrupted += 1
                assert optimizer.steps == optimizer.auto.losses.steps == done == 0
                assert [group["lr"] for group in optimizer.param_groups] == before
        assert interrupted == interrupt
        return model[1].weight.detach(), optimizer.state_dict()["spzo"]

    weight, state = trained(interrupt=True)
    expected, known = trained(interrupt=False)
    assert torch.equal(weight, expected)
    del state["forwards"], known["forwards"]  # the interrupted step's are counted too
    assert state == known


@pytest.mark.slow
def test_low_precisions_rounding_takes_no_rates_away():
    """At its optimum a bfloat16 model's losses differ by rounding: rates stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    teacher = torch.randn(16, 4)

    def batch(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 16, generator=draw)
        return x, (x @ teacher + 2 * torch.randn(count, 4, generator=draw)).argmax(1)

    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(200):
        x, y = batch(step, 256)
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    model.to(torch.bfloat16)
    x, _ = batch(0, 32)
    optimizer = SPZO(
        split(model, at=-1, example={"input": x.bfloat16()}),
        lr="auto",
        perturbations=(0, 4),
        cost_shares=(0.01,),
    )
    trials = 0
    for step in range(600):
        x, y = batch(1000 + step, 32)
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x.bfloat16()).float(), y))
        trials += len(optimizer.last_step.losses) - 1 - newton_evaluations(4)
    assert optimizer.auto.factor >= 1 / 4
    assert trials < 2 * 600

"""Steps of lr="auto" that are held to what their gradients promise."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from auto_lr_toys import Bowl, bowl_run
from torch import nn
from torch.nn import functional as F

from fedspzo import SPZO, Blocks
from fedspzo.auto_lr.trust_ratio import Trial, halve_until_trusted, predicted, resolution
from fedspzo.estimators.float32 import coefficients
from fedspzo.estimators.step_report import StepReport

FAR = 2.0**20


def too_fast(**settings: object) -> tuple[Bowl, SPZO]:
    """An optimizer whose rates are far above what the bounds allow."""
    model, optimizer, _ = bowl_run(0, **settings)
    optimizer.auto = replace(optimizer.auto, factor=FAR, takes_turns=False)
    return model, optimizer


def a_step(gradients: tuple, updates: tuple) -> StepReport:
    return StepReport(
        step=0,
        loss=1.0,
        losses=(1.0,),
        seeds=tuple(tuple(range(len(block))) for block in gradients),
        gradients=gradients,
        coefficients=updates,
        rounding_seed=None,
        forwards=5.0,
        skipped=False,
        lr=(0.5,) * len(gradients),
    )


def test_the_prediction_is_the_derivative_along_the_update():
    step = a_step(((2.0, -1.0), (3.0,)), ((-0.5, 0.25), (-0.1,)))
    assert predicted(step) == pytest.approx(-1.55)


class Slope:
    """A block of one direction with gradient 1, beyond whose step of 0.25 the loss rises."""

    def __init__(self) -> None:
        self.place = 0.0

    def move(self, target: dict[int, float]) -> None:
        self.place = sum(target.values())

    def loss(self) -> torch.Tensor:
        return torch.tensor(1 + self.place if self.place > -0.3 else 2.0)


def test_a_step_is_halved_until_it_keeps_its_promise_and_the_factor_is_returned():
    slope = Slope()
    trial = Trial([slope], slope.loss, cost=0.5, dtypes={torch.float32})
    wanted = a_step(((1.0,),), ((-1.0,),))
    step, factor = halve_until_trusted(wanted, trial)
    assert factor == 0.25
    assert step.coefficients == ((-0.25,),)
    assert step.lr == (0.5 * 0.25,)
    assert step.ratio == pytest.approx(1.0)
    assert step.forwards == 5.0 + 3 * 0.5
    assert halve_until_trusted(step, trial)[1] == 1.0


def test_a_low_precision_models_losses_show_less():
    assert resolution(torch.float32, {torch.float32}) == torch.finfo(torch.float32).eps
    assert resolution(torch.bfloat16, {torch.float32}) == torch.finfo(torch.bfloat16).eps
    low = resolution(torch.float32, {torch.float32, torch.bfloat16})
    assert low == torch.finfo(torch.bfloat16).eps / 8


@pytest.mark.parametrize(("units", "shown"), [(3.9, False), (4.1, True)])
def test_a_ratio_is_shown_where_the_promise_is_over_four_units_of_the_loss(units, shown):
    trial = Trial([Slope()], lambda: torch.tensor(1.0), cost=1.0, dtypes={torch.float32})
    step = a_step(((1.0,),), ((-units * torch.finfo(torch.float32).eps,),))
    assert (trial.ratio(step) is not None) == shown


def test_a_step_that_breaks_its_promise_is_halved_until_it_keeps_it():
    model, optimizer = too_fast()
    optimizer.step(model)
    report = optimizer.last_step
    halvings = math.log2(FAR / optimizer.auto.factor)
    assert halvings == int(halvings) > 1
    assert report.lr == tuple(group["lr"] for group in optimizer.param_groups)
    assert report.ratio >= 0.1
    assert report.undone is None
    for gradients, updates, rate in zip(
        report.gradients, report.coefficients, report.lr, strict=True
    ):
        assert updates == pytest.approx(coefficients(gradients, rate), rel=1e-6)
    fall = report.loss - model().item()
    assert fall / -predicted(report) == pytest.approx(report.ratio, rel=1e-3)
    share = optimizer.cost_shares[0]
    assert report.forwards == pytest.approx(1 + 2 * 2 + 2 * 4 * share + halvings + 1)


def test_without_trust_nothing_moves():
    """Where even the smallest step raises its batch's loss, it is not made."""
    model, optimizer = too_fast(evaluation="layerwise")
    before = copy.deepcopy(model.state_dict())
    calls, points = 0, 2 + 1 + 2 * 2 + 2 * 4  # the first step's measurement, and its own

    def evaluate() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return model() + (1e3 if calls > points else 0.0)

    optimizer.step(evaluate)
    report = optimizer.last_step
    assert report.undone == "step"
    assert report.ratio < 0.1
    assert calls == points + 32
    assert not any(c for block in report.coefficients for c in block)
    assert optimizer.auto.factor == FAR / 2**32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_promise_below_the_losses_resolution_teaches_nothing():
    """As with a loss in bfloat16, or one with a large constant in it."""
    model, optimizer, _ = bowl_run(0)
    for _ in range(9):
        optimizer.step(lambda: model() + 1e9)
        assert optimizer.last_step.undone is None
    assert optimizer.auto.factor == 1.0


def test_an_interrupted_check_leaves_what_was_known():
    """A step that is tried again is the step it would have been."""

    def trained(*, interrupt: bool) -> tuple[torch.Tensor, dict]:
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        x, y = torch.randn(16, 6), torch.arange(16) % 3
        optimizer = SPZO(
            Blocks.single(model), lr="auto", perturbations=4, sides="one", evaluation="layerwise"
        )
        calls = 0

        def loss() -> torch.Tensor:
            nonlocal calls
            calls += 1
            if interrupt and calls == 6:  # after the 5 of the estimate: the check
                raise KeyboardInterrupt
            return F.cross_entropy(model(x), y)

        done, before = 0, [group["lr"] for group in optimizer.param_groups]
        while done < 3:
            try:
                optimizer.step(loss)
                done += 1
            except KeyboardInterrupt:
                assert optimizer.steps == optimizer.auto.losses.steps == done == 0
                assert [group["lr"] for group in optimizer.param_groups] == before
        return model.weight.detach(), optimizer.state_dict()["spzo"]

    weight, state = trained(interrupt=True)
    expected, known = trained(interrupt=False)
    assert torch.equal(weight, expected)
    assert state == known


@pytest.mark.slow
def test_low_precisions_rounding_is_no_broken_promise():
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
    optimizer = SPZO(Blocks.single(model), lr="auto", perturbations=4)
    for step in range(600):
        x, y = batch(1000 + step, 32)
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x.bfloat16()).float(), y))
    assert optimizer.auto.factor >= 1 / 4

"""lr="auto": what is told from noise, and what brings a run back that lost its loss."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedspzo import SPZO, Blocks
from fedspzo.auto_lr.auto_rate import AutoRate, root_mean_square
from fedspzo.auto_lr.trust_ratio import LOST


def alarms(spread: float, steps: int, seed: int) -> int:
    """How often losses about 0.7 are said to diverge that only vary, by this standard deviation."""
    draw, auto, count = random.Random(seed), AutoRate(), 0
    for _ in range(steps):
        if auto.diverged(draw.gauss(0.7, spread * 0.7)):
            count += 1
            auto.begin_anew()
    return count


@pytest.mark.parametrize("spread", [0.1, 0.2, 0.3, 0.5])
def test_noise_is_no_divergence(spread):
    """Small batches' losses vary by a third: rates would be halved for nothing, for ever."""
    assert sum(alarms(spread, 2000, seed) for seed in range(4)) <= 1


def test_losses_about_zero_that_vary_are_no_divergence():
    draw, auto = random.Random(0), AutoRate()
    assert not any(auto.diverged(draw.gauss(0.0, 1.0)) for _ in range(1000))


def test_absurd_losses_are_divergence_and_no_error():
    auto = AutoRate()
    assert not any(auto.diverged(loss) for loss in [0.7] * 20)
    assert any(auto.diverged(loss) for loss in (1e200, 1e307, 0.7))
    for _ in range(40):
        auto.diverged(0.7)


@pytest.mark.parametrize("spread", [0.01, 0.1, 0.3])
def test_divergence_is_told_from_noise(spread):
    """Losses that grow by 3 % a step are noticed before they have tripled, for all the noise."""
    for seed in range(20):
        draw, auto = random.Random(seed), AutoRate()
        mean = 0.7
        for _ in range(100):
            assert not auto.diverged(draw.gauss(mean, spread * mean))
        while not auto.diverged(draw.gauss(mean, spread * mean)):
            mean *= 1.03
            assert mean < 3 * 0.7


class Wall(nn.Module):
    """A slope that ends at a wall beyond which there is no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((8,), 0.05))

    def forward(self, noise: float) -> torch.Tensor:
        return -self.w.sum() * (1 + noise) - 0.01 * torch.log(1 - self.w.sum())


@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_weights_without_a_finite_loss_go_back():
    model = Wall()
    optimizer = SPZO(Blocks.single(model), lr="auto", perturbations=4)
    for _ in range(20):
        optimizer.step(lambda: model(0.0))
    assert optimizer.skipped == 0
    lr = optimizer.param_groups[0]["lr"]
    best = model.w.detach().clone()
    terms = len(optimizer.auto.recent)
    with torch.no_grad():
        model.w += 1  # beyond the wall, as one large step may lead
    for _ in range(LOST - 1):
        assert math.isnan(optimizer.step(lambda: model(0.0)))
        assert optimizer.last_step.skipped
    assert terms
    assert optimizer.last_step.undone is None
    state = optimizer.state_dict()
    optimizer.step(lambda: model(0.0))
    assert optimizer.last_step.undone == "steps"
    assert not optimizer.last_step.skipped
    assert optimizer.skipped == LOST - 1
    assert optimizer.param_groups[0]["lr"] == lr / 2
    assert not torch.equal(model.w, best + 1)
    other = SPZO(Blocks.single(Wall()), lr="auto", perturbations=4)
    other.load_state_dict(state)
    assert other.auto.lost == LOST - 1  # a run that is resumed counts on


@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_a_bad_batch_now_and_then_takes_nothing_back():
    model = Wall()
    optimizer = SPZO(Blocks.single(model), lr="auto", perturbations=4)
    for step in range(60):
        noise = math.nan if step % 3 == 2 else 0.0
        optimizer.step(lambda noise=noise: model(noise))
    assert optimizer.skipped == 20
    assert optimizer.auto.factor == 1.0


def test_an_interrupted_look_leaves_what_was_known():
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
            if interrupt and calls == 6:  # after the 5 of the estimate: the look
                raise KeyboardInterrupt
            return F.cross_entropy(model(x), y)

        done = 0
        while done < 3:
            try:
                optimizer.step(loss)
                done += 1
            except KeyboardInterrupt:
                assert optimizer.steps == optimizer.auto.steps == done == 0
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


def test_the_size_of_large_weights_is_taken_in_parts(monkeypatch):
    tensors = [torch.randn(37, 3), torch.randn(5, 2).t(), torch.tensor(2.0), torch.empty(0)]
    whole = root_mean_square(tensors)
    monkeypatch.setattr("fedspzo.auto_lr.auto_rate.PART", 7)
    assert root_mean_square(tensors) == pytest.approx(whole, rel=1e-6)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    assert whole == pytest.approx(flat.square().mean().sqrt().item(), rel=1e-6)

"""Newton steps in whole runs: interrupted, from a flat place, and in low precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedspzo import SPZO, split
from fedspzo.estimators.defaults import newton_evaluations


@pytest.mark.parametrize("seed", range(5))
def test_a_jump_from_a_flat_and_wrong_place_is_taken_back_and_training_goes_on(seed: int):
    """On a ramp of curvature next to none, far from its end, Newton's step has no bound."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        for weights, value in zip(model.parameters(), (1.0, 0.0, 8.0, 0.25), strict=True):
            weights.fill_(value)
    x = torch.ones(1, 1)
    blocks = split(model, at=1, example={"input": x})
    optimizer = SPZO(blocks, lr="auto", perturbations=(0, 4), newton=True, seed=seed)

    def loss() -> torch.Tensor:
        return F.softplus(4 * model(x).abs()).mean()  # steep at 8, least at 0

    losses = [float(optimizer.step(loss)) for _ in range(40)]
    assert losses[0] == pytest.approx(32.0)
    assert max(losses) > 2 * 32.0  # the jump
    assert optimizer.auto.factor == 0.5  # taken back once
    assert loss().item() < 1.0


def test_an_interrupted_newton_step_leaves_what_was_known():
    """A step that is made again is the step it would have been."""

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
            if interrupt and calls == 1 + newton_evaluations(4):  # its last
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
    for step in range(600):
        x, y = batch(1000 + step, 32)
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x.bfloat16()).float(), y))
    assert optimizer.auto.factor >= 1 / 4

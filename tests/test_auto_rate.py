"""lr="auto": the search, the way back, and that all of it is a function of the losses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fedspzo import SPZO, split
from fedspzo.auto_rate import (
    EVERY,
    GROW,
    HALVE,
    LARGEST,
    LARGEST_LAST,
    REJECTED,
    SHRINK,
    START,
    TRUSTED,
    AutoRate,
    predicted,
    relative_size,
)
from fedspzo.journal import apply
from fedspzo.step_journal import step_record
from fedspzo_kernels import noise

DIM = 12


class Bowl(nn.Module):
    """A quadratic of curvature `curve`, seen through three linear layers of one number each."""

    def __init__(self, curve: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Shift() for _ in range(3)]).to(dtype)
        self.curve = curve

    def forward(self) -> torch.Tensor:
        x = torch.ones(DIM, dtype=self.layers[0].shift.dtype)  # here all shifts are nothing
        for layer in self.layers:
            x = layer(x)
        return 0.5 * self.curve * x.float().square().sum()


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((DIM,), 8.0))  # far from 0: steps are small beside it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (self.shift - 8)


def a_run(curve: float, steps: int, dtype=torch.float32, seed=0, **settings):
    model = Bowl(curve, dtype)
    optimizer = SPZO(
        split(model, at=-1, example={}), lr="auto", seed=seed, perturbations=(2, 4), **settings
    )
    losses = [optimizer.step(model) for _ in range(steps)]
    return model, optimizer, losses


def test_a_rate_in_search_doubles_while_steps_keep_their_promise():
    auto = AutoRate()
    assert [auto.factor(1.0, 0.0), auto.factor(TRUSTED + 0.01, 0.0)] == [GROW, GROW]
    assert auto.searching
    assert auto.factor(TRUSTED - 0.01, 0.0) == 1.0
    assert not auto.searching
    assert auto.factor(1.0, 0.0) == 1.0
    assert auto.factor(0.0, 0.0) == SHRINK
    assert auto.factor(REJECTED - 0.01, 0.0) == HALVE
    assert auto.factor(math.nan, 0.0) == HALVE


def test_a_large_step_ends_the_search():
    auto = AutoRate()
    assert auto.factor(1.0, 1 / GROW) == GROW
    assert auto.factor(1.0, 1.0) == 1.0
    assert not auto.searching


def test_the_size_of_a_step_is_relative_to_its_blocks_weights():
    twos, zeros = [torch.full((100,), 2.0)], [torch.zeros(50)]
    step, other = {1: 0.3, 2: -0.4}, {3: 1.0}
    assert relative_size((twos, zeros), (step, other)) == pytest.approx(0.25 / LARGEST)
    assert relative_size((twos,), (step,)) == pytest.approx(0.25 / LARGEST)
    last = relative_size((zeros, twos), (other, step))  # a new head, maybe: it may take more
    assert last == pytest.approx(0.25 / LARGEST_LAST)
    z = 0.3 * noise(10**5, 5, 1) - 0.4 * noise(10**5, 5, 2)
    assert z.norm().item() / (2 * 10**2.5) == pytest.approx(0.25, rel=0.01)


def test_the_search_looks_at_every_step_and_later_at_some():
    auto = AutoRate()
    assert all(auto.due() for _ in range(5))
    auto.searching = False
    assert sum(auto.due() for _ in range(10 * EVERY)) == 10


def test_the_prediction_is_the_derivative_along_the_update():
    assert predicted([[2.0, -1.0], [3.0]], [[-0.5, 0.25], [-0.1]]) == pytest.approx(-1.55)


@pytest.mark.parametrize("curve", [1e-3, 1.0, 1e3])
def test_the_rate_found_fits_the_curvature(curve):
    """Within the range in which a quadratic's loss falls: above 0 and below 2 P / trace."""
    _, optimizer, losses = a_run(curve, 60)
    assert losses[-1] < 0.2 * losses[0]
    rate = optimizer.param_groups[0]["lr"]
    assert 0.02 < rate * curve * DIM / 2 < 2


def test_without_trust_nothing_moves():
    """Where a step raises its batch's loss, it is not made, and the rate is halved."""
    model = Bowl(1.0)
    blocks = split(model, at=-1, example={})
    optimizer = SPZO(blocks, lr="auto", perturbations=(2, 4), evaluation="layerwise")
    for group in optimizer.param_groups:
        group["lr"] = 100.0
    before = copy.deepcopy(model.state_dict())
    optimizer.step(model)
    report = optimizer.last_step
    assert report.undone == "step"
    assert report.ratio < REJECTED
    assert not any(c for block in report.coefficients for c in block)
    assert optimizer.param_groups[0]["lr"] == 50.0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_takes_back_the_steps_since_the_best_loss(dtype):
    """On other data all at once; bit for bit what the reports' terms make of the start."""
    model, optimizer, _ = a_run(1.0, 6, dtype, evaluation="layerwise")
    start = Bowl(1.0, dtype)
    best = optimizer.auto.best
    rate = optimizer.param_groups[0]["lr"]
    reports = []
    for _ in range(30):
        optimizer.step(lambda: 20 * model())
        reports.append(optimizer.last_step)
        if reports[-1].undone == "steps":
            break
    assert reports[-1].undone == "steps"
    assert optimizer.param_groups[0]["lr"] <= HALVE * rate
    assert optimizer.auto.smoothed == optimizer.auto.best <= best
    assert optimizer.auto.recent == []
    # the whole run again, from its start, as a journal replays it
    again, other, _ = a_run(1.0, 0, dtype, evaluation="layerwise")
    for number in range(6 + len(reports)):
        other.step(again if number < 6 else lambda: 20 * again())
        apply(step_record(other.last_step, number), split(start, at=-1, example={}).groups)
    for left, mid, right in zip(
        model.parameters(), again.parameters(), start.parameters(), strict=True
    ):
        assert torch.equal(left, mid)
        assert torch.equal(mid, right)


def test_a_run_with_auto_continues_from_its_state():
    _, optimizer, _ = a_run(1.0, 7)
    model, other, _ = a_run(1.0, 4)
    state = copy.deepcopy(other.state_dict())
    twin = Bowl(1.0)
    twin.load_state_dict(model.state_dict())
    third = SPZO(split(twin, at=-1, example={}), lr="auto", perturbations=(2, 4))
    third.load_state_dict(state)
    for _ in range(3):
        third.step(twin)
    assert third.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert third.last_step == optimizer.last_step
    assert third.forwards == optimizer.forwards


def test_what_it_costs_is_counted_and_what_it_does_is_reported():
    _, optimizer, _ = a_run(1.0, 1)
    report = optimizer.last_step
    share = optimizer.cost_shares[0]
    assert report.lr == (START, 2 * START)
    assert report.ratio == pytest.approx(1.0, abs=0.1)
    assert report.forwards == pytest.approx(1 + 2 + 4 * share + 1)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="lr is 'best'; pass a number, one a block, or 'auto'"):
        SPZO(Bowl(1.0).parameters(), lr="best")

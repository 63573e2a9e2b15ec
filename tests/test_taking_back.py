"""Steps of lr="auto" that are taken back where training has diverged."""

from __future__ import annotations

import math

import pytest
import torch
from auto_lr_toys import Bowl, bowl_run, policy, two_blocks
from torch import nn

from fedspzo import SPZO, Blocks
from fedspzo.auto_lr.central import CentralPolicy
from fedspzo.estimators.step_report import StepReport
from fedspzo.journal.records import apply
from fedspzo.journal.steps import step_record


def judged(known: CentralPolicy, step: int, loss: float) -> StepReport:
    """What becomes of a step of one term."""
    report = StepReport(
        step=step,
        loss=loss,
        losses=(loss,),
        seeds=((step,),),
        gradients=((0.0,),),
        coefficients=((0.1,),),
        rounding_seed=None,
        forwards=1.0,
        skipped=False,
    )
    return known.judge(report)


def test_the_steps_since_the_best_loss_are_taken_back_and_rates_halved():
    known = policy(1.0)
    losses = [1.0] * 20 + [1.01] + [9.0] * 2
    reports = [judged(known, step, loss) for step, loss in enumerate(losses)]
    assert [report.undone for report in reports] == [False] * 21 + [True, False]
    # the step at the best loss is one of them: its loss is from before it was made
    assert dict(zip(*reports[21].seeds, *reports[21].coefficients, strict=True)) == {
        19: -0.1,
        20: -0.1,
    }
    assert known.factor == 0.5
    assert known.recent == [({22: 0.1},)]


def test_a_drift_slower_than_what_can_be_taken_back_takes_the_last_64_steps_back():
    known = policy(1.0)
    for step in range(100):
        assert not judged(known, step, 1.0 - 0.006 * step).undone
    best = known.losses.smoothed
    for step in range(100, 400):
        report = judged(known, step, best + 0.001 * (step - 100))
        if report.undone:
            break
    assert step > 164
    undone = dict(zip(*report.seeds, *report.coefficients, strict=True))
    assert undone == dict.fromkeys(range(step - 64, step), -0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_takes_back_the_steps_since_the_best_loss(dtype):
    """On other data all at once; bit for bit what the reports' terms make of the start."""
    before = 12
    model, optimizer, _ = bowl_run(before, dtype=dtype, evaluation="layerwise")
    start = Bowl(1.0, dtype)
    best = optimizer.auto.losses.best
    rate = optimizer.param_groups[1]["lr"]
    reports = []
    for _ in range(30):
        optimizer.step(lambda: 20 * model())
        reports.append(optimizer.last_step)
        if reports[-1].undone:
            break
    assert reports[-1].undone
    assert optimizer.param_groups[1]["lr"] <= rate / 2
    assert optimizer.auto.losses.best <= best
    assert optimizer.auto.recent == []
    assert optimizer.auto.losses.since_restart == 0  # what comes is compared with itself
    # the whole run again, from its start, as a journal replays it
    again, other, _ = bowl_run(0, dtype=dtype, evaluation="layerwise")
    for number in range(before + len(reports)):
        other.step(again if number < before else lambda: 20 * again())
        apply(step_record(other.last_step, number), two_blocks(start).groups)
    for left, mid, right in zip(
        model.parameters(), again.parameters(), start.parameters(), strict=True
    ):
        assert torch.equal(left, mid)
        assert torch.equal(mid, right)


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
    steps = len(optimizer.auto.recent)
    with torch.no_grad():
        model.w += 1  # beyond the wall, as one large step may lead
    for _ in range(3):
        assert math.isnan(optimizer.step(lambda: model(0.0)))
        assert optimizer.last_step.skipped
    assert steps
    assert not optimizer.last_step.undone
    state = optimizer.state_dict()
    optimizer.step(lambda: model(0.0))
    assert optimizer.last_step.undone
    assert not optimizer.last_step.skipped
    assert optimizer.skipped == 3
    assert optimizer.param_groups[0]["lr"] == lr / 2
    assert not torch.equal(model.w, best + 1)
    other = SPZO(Blocks.single(Wall()), lr="auto", perturbations=4)
    other.load_state_dict(state)
    assert other.auto.lost_steps == 3  # a run that is resumed counts on


@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_a_bad_batch_now_and_then_takes_nothing_back():
    model = Wall()
    optimizer = SPZO(Blocks.single(model), lr="auto", perturbations=4)
    for step in range(60):
        noise = math.nan if step % 3 == 2 else 0.0
        optimizer.step(lambda noise=noise: model(noise))
    assert optimizer.skipped == 20
    assert optimizer.auto.factor == 1.0

"""Recorded evaluations free what they read, and put everything back where a step fails."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from auto_lr_toys import newton_run
from spzo_toys import close, same, weights
from torch import Tensor, nn
from torch.nn import functional as F

from fedspzo import SPZO, split
from fedspzo.evaluation import recording

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_compiled")

EVALUATIONS = ["in_place", "layerwise"]


@pytest.mark.parametrize("others", [0, 1])
def test_what_recorded_evaluations_read_is_freed_when_the_step_ends(others):
    torch.manual_seed(0)
    body, head = nn.Linear(4, 4), nn.Linear(4, 3)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    model = nn.Sequential(body, head)
    optimizer = SPZO(
        split(model, at=-1, example={"input": x}),
        lr=(1e-3, 1e-2),
        newton=True,
        perturbations=(others, 8),
        cost_shares=(0.01,),
    )
    living: list[int] = []
    read: list[weakref.ref[Tensor]] = []

    def loss() -> Tensor:
        living.append(sum(ref() is not None for ref in read))
        hidden = body(x).clone()
        read.append(weakref.ref(hidden))
        return F.cross_entropy(head(hidden), y)

    optimizer.step(loss)
    living.clear()
    optimizer.step(loss)
    # the body; then at theta, to record, and twice to check
    assert living == [0] * others + [0, 0, 1, 1]
    assert not any(ref() is not None for ref in read)


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("struck", [1, 9])
def test_ctrl_c_in_a_recorded_evaluation_puts_everything_back(monkeypatch, evaluation, struck):
    model, optimizer, loss = newton_run(2, evaluation=evaluation)
    before, steps = weights(model), optimizer.steps
    run = recording._Recorded.__call__
    left = [struck]

    def interrupted(self: Any) -> Tensor:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return run(self)

    monkeypatch.setattr(recording._Recorded, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss)
    assert left[0] == 0  # it did not wait for the step's end
    assert same(model, before) if evaluation == "layerwise" else close(model, before)
    assert optimizer.steps == steps
    optimizer.step(loss)
    assert optimizer.steps == steps + 1


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("failing", [1, 2])  # while it is recorded, and while it is checked
def test_a_closure_that_fails_fails_the_step_and_puts_everything_back(evaluation, failing):
    model, optimizer, loss = newton_run(2, evaluation=evaluation)
    before = weights(model)
    calls: Iterator[int] = iter(range(100))

    def fails() -> Tensor:
        if next(calls) == failing:
            raise ValueError("out of data")
        return loss()

    with pytest.raises(ValueError, match="out of data"):
        optimizer.step(fails)
    assert same(model, before) if evaluation == "layerwise" else close(model, before)
    assert optimizer.step(loss) < float("inf")

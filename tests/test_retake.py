"""A step that is taken again from its losses moves weights and learns to the same bits."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data

from fedspzo import SPZO
from fedspzo.journal import digest

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, dict[str, Any]] = {
    "fixed rate": {"lr": 1e-2, "perturbations": (1, 2)},
    "auto": {"lr": "auto", "perturbations": (1, 2)},
    "newton": {"lr": "auto", "perturbations": (1, 8), "newton": True},
    "newton at its own rate": {"lr": 0.3, "perturbations": (1, 8), "newton": True},
    "balanced, two sides": {"lr": "auto", "estimator": "balanced", "sides": "two"},
    "coupled": {"lr": "auto", "estimator": "coupled", "perturbations": (1, 3)},
    "mezo": {"lr": "auto", "estimator": "mezo", "perturbations": 2},
    "bfloat16": {"lr": "auto", "perturbations": (1, 2)},
    "too long a step": {"lr": 50.0, "perturbations": (1, 8), "newton": True},
}


def an_optimizer(name: str) -> SPZO:
    settings = KINDS[name]
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    single = settings.get("estimator") == "mezo"
    optimizer = SPZO(toy(dtype, single=single), **{"perturbations": (1, 2), **settings})
    if optimizer.auto is not None:
        optimizer.auto = replace(optimizer.auto, takes_turns=False)
    return optimizer


def weights_of(optimizer: SPZO) -> str:
    assert optimizer._model is not None
    return digest(optimizer._model.named_parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step 4 was skipped")
@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_same_step(name: str) -> None:
    task, (examples,) = ToyTask(), toy_data([24])
    taking, retaking, still = (an_optimizer(name) for _ in range(3))
    before = weights_of(still)
    for step in range(10):
        batch = task.collate(examples[2 * step : 2 * step + 4])
        broken = math.nan if step == 4 else 1.0  # a step that is skipped
        loss = torch.zeros(())

        def closure(batch: Any = batch, broken: float = broken) -> torch.Tensor:
            nonlocal loss
            loss = task.loss(taking._model, batch) * broken
            return loss

        taking.step(closure)
        report = taking.last_step
        assert report is not None
        known = torch.tensor(report.losses, dtype=loss.dtype)
        retaking.retake(known)
        still.retake(known, move=False)
        assert weights_of(retaking) == weights_of(taking)
        for other in (retaking, still):
            assert other.steps == taking.steps == step + 1
            if taking.auto is not None:
                ours, theirs = taking.auto.to_dict(), other.auto.to_dict()
                for part in (*ours["blocks"], *theirs["blocks"]):
                    del part["turn_interval"]  # follows from measured costs
                assert str(theirs) == str(ours)
    assert weights_of(still) == before
    assert retaking.forwards == 0
    batch = task.collate(examples[:4])
    for optimizer in (taking, retaking):
        optimizer.step(partial(task.loss, optimizer._model, batch))
    assert weights_of(retaking) == weights_of(taking)


@pytest.mark.parametrize("change", [1, -1])
def test_losses_of_another_step_are_refused_and_nothing_is_learned(change: int) -> None:
    optimizer = an_optimizer("auto")
    assert optimizer.auto is not None
    before = optimizer.auto.to_dict()
    weights = [p.clone() for group in optimizer.param_groups for p in group["params"]]
    taking = an_optimizer("auto")
    task, (examples,) = ToyTask(), toy_data([4])
    taking.step(partial(task.loss, taking._model, task.collate(examples)))
    report = taking.last_step
    assert report is not None
    known = [*report.losses, 0.5]
    with pytest.raises(ValueError, match=r"losses has .*, but the step evaluates"):
        optimizer.retake(torch.tensor(known[: len(known) - 1 + change]))
    assert optimizer.auto.to_dict() == before
    assert optimizer.steps == 0
    now = [p for group in optimizer.param_groups for p in group["params"]]
    for weight, kept in zip(now, weights, strict=True):
        torch.testing.assert_close(weight, kept, rtol=0, atol=1e-6)

"""A differentially private step of the optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from federated_toys import toy, toy_data
from private_toys import NOISELESS, PrivateToy, everything
from torch import Tensor

from fedspzo.estimators import find
from fedspzo.optim.spzo import SPZO

ESTIMATORS = [
    ("anchored", "one", (2, 3)),
    ("anchored", "two", (2, 3)),
    ("balanced", "one", (1, 4)),
    ("balanced", "two", (2, 2)),
    ("coupled", "two", (1, 3)),
    ("mezo", "one", 3),
    ("mezo", "two", 3),
]


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize(("name", "sides", "perturbations"), ESTIMATORS)
def test_without_clip_and_noise_a_step_is_the_usual_one(
    name, sides, perturbations, evaluation
) -> None:
    ((*data,),) = toy_data([12])
    task = PrivateToy()
    batch, results = task.collate(data), []
    for private in (False, True):
        blocks = toy(single=find(name).joint)
        mechanism = everything(NOISELESS, 12, clip=1e6) if private else None
        optimizer = SPZO(
            blocks,
            1e-2,
            estimator=name,
            sides=sides,
            perturbations=perturbations,
            evaluation=evaluation,
            privacy=mechanism,
        )
        for _ in range(2):
            if mechanism is not None:
                assert mechanism.sample(12) == list(range(12))
            function = task.losses if private else task.loss
            optimizer.step(lambda f=function, b=blocks: f(b.model, batch))
        results.append((optimizer.last_step, list(blocks.model.parameters())))
    (usual, weights), (private, others) = results
    for mine, expected in zip(private.gradients, usual.gradients, strict=True):
        # differences of losses over eps: float32's rounding of a loss over 1e-3
        assert mine == pytest.approx(expected, abs=5e-4)
    assert private.loss == pytest.approx(usual.loss, rel=1e-5)
    assert private.forwards == usual.forwards
    for mine, expected in zip(others, weights, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_a_private_step_is_never_skipped_for_what_a_loss_is() -> None:
    blocks = toy()
    mechanism = everything(1.0, 2)
    optimizer = SPZO(blocks, 1e-2, perturbations=(1, 2), privacy=mechanism, cost_shares=(0.5,))
    before = [p.clone() for p in blocks.model.parameters()]
    for losses in (torch.tensor([math.nan, math.inf]), torch.tensor([1.0, math.nan])):
        mechanism.sample(2)

        def closure(losses: Tensor = losses) -> Tensor:
            blocks.model(torch.zeros(2, 8))
            return losses

        optimizer.step(closure)
        assert not optimizer.last_step.skipped
        assert all(g != 0 for block in optimizer.last_step.gradients for g in block)
    after = blocks.model.parameters()
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_closure_of_a_private_step_returns_a_loss_an_example() -> None:
    blocks, mechanism = toy(), everything(1.0, 4)
    optimizer = SPZO(blocks, privacy=mechanism)
    mechanism.sample(4)
    task, batch = PrivateToy(), PrivateToy().collate(toy_data([4])[0])
    with pytest.raises(ValueError, match=r"with privacy return one an example, \(B,\)"):
        optimizer.step(lambda: task.loss(blocks.model, batch))
    with pytest.raises(ValueError, match="the sample has 4 examples"):
        optimizer.step(lambda: task.losses(blocks.model, batch)[:3])

"""`SPZO.step_at`: where a step stands in which sequence, and at what rates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedspzo import SPZO, split


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))


def two_blocks(model: nn.Module, **settings: object) -> SPZO:
    blocks = split(model, at=-1, example={"input": torch.zeros(1, 4)})
    return SPZO(blocks, perturbations=(2, 4), cost_shares=(0.25,), **settings)


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: model(torch.ones(2, 4)).square().mean()


def test_a_step_can_be_taken_of_any_sequence_at_any_number():
    model = network()
    optimizer = two_blocks(model, seed=1)
    seeds = []
    for _ in range(3):
        optimizer.step(loss_of(model))
        seeds.append(optimizer.last_step.seeds)
    optimizer.step_at(2)
    optimizer.step(loss_of(model))
    assert optimizer.last_step.step == 0
    assert optimizer.last_step.seeds not in seeds
    optimizer.step_at(1, 1)
    for expected in seeds[1:]:
        optimizer.step(loss_of(model))
        assert optimizer.last_step.seeds == expected
    assert optimizer.last_step.step == 2


def test_rates_that_come_with_a_step_are_used_as_they_are():
    model = network()
    optimizer = two_blocks(model, lr=0.1)
    optimizer.step(loss_of(model))
    assert optimizer.last_step.lr[1] > optimizer.last_step.lr[0] == 0.1
    optimizer.step_at(0, 5, (1e-3, 3e-3))
    for _ in range(2):
        optimizer.step(loss_of(model))
        assert optimizer.last_step.lr == (1e-3, 3e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), r"seed is -1; pass an int in \[0, 2\*\*64\)"),
        ((1, -1), "step is -1; give a whole number from 0"),
        ((1, 1.0), "step is 1.0; give a whole number from 0"),
        ((1, 0, (1e-3,)), r"lr is \(0.001,\), but there are 2 blocks; give each one"),
        ((1, 0, (1e-3, 0.0)), "lr is 0.0; give a"),
    ],
)
def test_a_place_or_rate_that_cannot_be_is_refused_and_changes_nothing(arguments, message):
    optimizer = SPZO([{"params": [nn.Parameter(torch.ones(2))]} for _ in "ab"], lr=0.1, seed=7)
    with pytest.raises(ValueError, match=message):
        optimizer.step_at(*arguments)
    assert (optimizer.seed, optimizer.steps) == (7, 0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_rates_are_not_given_to_an_optimizer_that_finds_them():
    optimizer = SPZO([nn.Parameter(torch.ones(2))], lr="auto")
    with pytest.raises(ValueError, match="finds its rates; leave it out"):
        optimizer.step_at(1, 0, (1e-3,))

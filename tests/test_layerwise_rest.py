"""Layerwise evaluation of steps in which a block rests: its weights stay where they are."""

from __future__ import annotations

import pytest
import torch
from layerwise_toys import Keeping, Small, bits, by_copies, loss_on, unchanged
from torch import Tensor

from fedspzo.blocks.cut import split
from fedspzo.evaluation.virtual_parameter import VirtualParameter
from fedspzo.optim.spzo import SPZO

IDS = torch.arange(6).reshape(2, 3)


def test_a_resting_block_has_virtual_parameters_in_the_first_step_alone():
    """The first step has to find out which parameters are used past their modules."""
    model = Small()
    before = bits(model)
    blocks = split(model, 1, example={"ids": IDS})
    optimizer = SPZO(
        blocks, evaluation="layerwise", perturbations=(0, 2), cost_shares=(0.5,), lr=0.0
    )
    virtual: list[set[str]] = []
    plain = loss_on(model, IDS)

    def loss() -> Tensor:
        virtual[-1] |= {
            f"{place}.{name}"
            for place, module in model.named_modules()
            for name, parameter in module._parameters.items()
            if isinstance(parameter, VirtualParameter)
        }
        return plain()

    for _ in range(2):
        virtual.append(set())
        optimizer.step(loss)
        assert list(optimizer.last_step.losses) == by_copies(optimizer, model, plain)
        assert unchanged(model, before)
    assert virtual[0] == set(before)
    assert virtual[1] == set(optimizer.param_groups[1]["param_names"]) < virtual[0]


def test_a_block_that_has_rested_moves_again_with_what_strays():
    model = Keeping()
    blocks = split(model, 1, example={"ids": IDS})
    optimizer = SPZO(
        blocks, evaluation="layerwise", perturbations=(0, 2), cost_shares=(0.5,), lr=0.0
    )
    loss = loss_on(model, IDS)
    with pytest.warns(UserWarning, match="are used past"):
        optimizer.step(loss)
    optimizer.param_groups[0]["perturbations"] = 1
    optimizer.step(loss)
    assert len(optimizer.last_step.seeds[0]) == 1
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)

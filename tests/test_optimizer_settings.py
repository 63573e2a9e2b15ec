"""SPZO's defaults, and the errors that name a setting, its value and the remedy."""

from __future__ import annotations

import math

import pytest
import torch
from spzo_toys import THREE, llama, loss_of
from torch import nn

from fedspzo.blocks.cut import Blocks, split
from fedspzo.estimators.mezo import Mezo
from fedspzo.federated import OptimizerConfig
from fedspzo.federated.optimizers import resolve
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMETER = nn.Parameter(torch.ones(2))
BFLOAT16 = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))


def test_defaults_follow_the_dtype():
    for dtype, sides, eps, rounding in (
        (torch.float32, "one", 1e-3, "nearest"),
        (torch.bfloat16, "two", 5e-3, "stochastic"),
        (torch.float16, "two", 5e-3, "stochastic"),
    ):
        optimizer = SPZO(split(llama(dtype), THREE))
        assert (optimizer.sides, optimizer.rounding) == (sides, rounding)
        assert optimizer.evaluation == ("in_place" if dtype == torch.float32 else "layerwise")
        assert [group["eps"] for group in optimizer.param_groups] == [eps] * 3
        assert optimizer.estimator == "anchored"
        balanced = SPZO(split(llama(dtype), at=-1), estimator="balanced")
        assert balanced.sides == sides
    assert SPZO(split(llama(), at=-1), estimator="coupled").sides == "two"
    assert SPZO(Blocks.single(llama())).estimator == "mezo"
    assert SPZO(llama().parameters()).estimator == "mezo"


def test_a_joint_estimator_says_how_many_directions_it_takes_by_default(monkeypatch):
    def three(kind, shares, first, most):
        return (3,) * (1 + len(shares))

    monkeypatch.setattr(Mezo, "default_perturbations", classmethod(three))
    for params in (Blocks.single(llama()), split(llama(), THREE)):
        optimizer = SPZO(params, estimator="mezo")
        assert {group["perturbations"] for group in optimizer.param_groups} == {3}
    settings = OptimizerConfig(lr=1e-3, estimator="mezo")
    assert resolve(settings, Blocks.single(llama())).perturbations == 3


def test_one_sided_steps_need_no_more_directions_than_one_sided_formulas():
    model = llama()
    optimizer = SPZO(split(model, -1), estimator="balanced", sides="one", perturbations=(1, 1))
    assert optimizer.step(loss_of(model)) > 0
    with pytest.raises(ValueError, match="'balanced' two-sided needs at least 2; raise P2"):
        SPZO(split(llama(), -1), estimator="balanced", sides="two", perturbations=(1, 1))


@pytest.mark.parametrize(
    ("params", "settings", "error", "says"),
    [
        ([], {}, ValueError, "params is empty; pass blocks.split"),
        ([nn.Parameter(torch.ones(1), requires_grad=False)], {}, ValueError, "requires_grad=True"),
        ([torch.ones(1, dtype=torch.float64, requires_grad=True)], {}, TypeError, "torch.float64"),
        (["text"], {}, TypeError, "parameter '0' is a str; pass"),
        ([PARAMETER], {"lr": -1e-3}, ValueError, "lr is -0.001; pass a finite number of 0 or more"),
        ([PARAMETER], {"eps": 0.0}, ValueError, "eps is 0.0; pass a finite number above 0"),
        ([PARAMETER], {"no_decay": "bias"}, ValueError, "no_decay is 'bias'; pass a sequence of"),
        ([PARAMETER], {"no_decay": (1,)}, ValueError, r"no_decay is \(1,\); pass a sequence of"),
        ([PARAMETER], {"lr": math.nan}, ValueError, "lr is nan; pass"),
        (
            [PARAMETER],
            {"lr": (1.0, 2.0)},
            ValueError,
            r"lr is \(1.0, 2.0\), but there are 1 blocks",
        ),
        ([PARAMETER], {"eps": -1e-3}, ValueError, "eps is -0.001; pass a finite number above 0"),
        ([PARAMETER], {"perturbations": 0}, ValueError, "perturbations is 0; pass an int of at"),
        ([PARAMETER], {"stream": "signs"}, ValueError, "stream is 'signs'; pass 'normal-v1' or"),
        ([PARAMETER], {"estimator": "adam"}, ValueError, "estimator is 'adam'; give one of"),
        (
            [PARAMETER],
            {"estimator": "balanced"},
            ValueError,
            r"two blocks.*pass split\(model, at=",
        ),
        ([PARAMETER], {"sides": "three"}, ValueError, "sides is 'three'; pass 'one' or 'two'"),
        ([PARAMETER], {"weight_decay": -1}, ValueError, "weight_decay is -1; pass .* 0 or more"),
        ([BFLOAT16], {"weight_decay": 0.1}, ValueError, "weight_decay is 0.1, but bfloat16"),
        ([PARAMETER], {"seed": -1}, ValueError, r"seed is -1; pass an int in \[0, 2\*\*64\)"),
        ([PARAMETER], {"rounding": "up"}, ValueError, "rounding is 'up'; pass 'nearest'"),
        ([PARAMETER], {"cost_shares": (0.5,)}, ValueError, r"cost_shares is \(0.5,\); .* \(0, 1\]"),
    ],
)
def test_bad_arguments_are_named(params, settings, error, says):
    with pytest.raises(error, match=says):
        SPZO(params, **settings)


def test_bad_arguments_for_two_blocks_are_named():
    blocks = split(llama(), at=-1)
    with pytest.raises(ValueError, match="perturbations is 4; 'balanced' takes one number a block"):
        SPZO(blocks, estimator="balanced", perturbations=4)
    with pytest.raises(ValueError, match="perturbations is 0; pass an int of at least 1"):
        SPZO(blocks, estimator="balanced", perturbations=(1, 0))
    with pytest.raises(ValueError, match="sides is 'one', but 'coupled' is two-sided"):
        SPZO(blocks, estimator="coupled", sides="one")
    with pytest.raises(ValueError, match=r"block 2 is 1, .* needs at least 2"):
        SPZO(blocks, estimator="balanced", sides="two", perturbations=(1, 1))
    with pytest.raises(ValueError, match="'balanced' needs two blocks, but there are 1"):
        SPZO(Blocks.single(blocks.model), estimator="balanced")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"perturbations": 4}, "perturbations is 4; 'anchored' takes one number a block"),
        ({"perturbations": (1, 2)}, r"perturbations is \(1, 2\), but there are 3 blocks"),
        ({"perturbations": (0, 0, 0)}, r"\(0, 0, 0\); give at least one block some"),
        ({"perturbations": (1, -1, 1)}, "perturbations is -1; pass an int of at least 0"),
        ({"perturbations": (1, 1, True)}, "perturbations is True; pass an int"),
        ({"lr": (1.0, 2.0)}, r"lr is \(1.0, 2.0\), but there are 3 blocks; pass one value"),
        ({"eps": (1.0,)}, r"eps is \(1.0,\), but there are 3 blocks"),
        ({"cost_shares": (0.5,)}, r"cost_shares is \(0.5,\); pass a number in \(0, 1\] for each"),
        ({"cost_shares": (0.5, 0.0)}, r"cost_shares is \(0.5, 0.0\)"),
        ({"estimator": "balanced"}, r"'balanced' needs two blocks, .* 3; pass split\(model, at="),
    ],
)
def test_bad_arguments_for_three_blocks_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        SPZO(split(llama(), THREE), **settings)

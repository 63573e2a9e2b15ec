"""An optimizer with lr="auto": what it reports, costs, saves and refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from auto_lr_toys import Bowl, bowl_run, two_blocks
from torch import nn

from fedspzo import SPZO


def test_one_block_by_the_anchored_estimator_finds_its_rate():
    model = Bowl()
    optimizer = SPZO(model.named_parameters(), lr="auto", estimator="anchored")
    optimizer.step(model)
    assert optimizer.param_groups[0]["perturbations"] == 3
    assert optimizer.param_groups[0]["lr"] != 1e-4


def test_a_state_is_loaded_as_a_copy_and_another_releases_is_refused():
    model, optimizer, _ = bowl_run(10)
    state = optimizer.state_dict()
    before = copy.deepcopy(state["spzo"]["auto"])
    optimizer.load_state_dict(state)
    for _ in range(3):
        optimizer.step(model)
    assert state["spzo"]["auto"] == before
    del state["spzo"]["auto"]["blocks"]
    with pytest.raises(ValueError, match="another release's lr='auto'"):
        optimizer.load_state_dict(state)


def test_a_state_holds_plain_values():
    def check(value: object) -> None:
        assert type(value) in (dict, list, tuple, int, float, bool, type(None))
        if isinstance(value, dict):
            for key, item in value.items():
                assert type(key) in (str, int)
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)

    _, optimizer, _ = bowl_run(20)
    check(optimizer.state_dict()["spzo"]["auto"])


def test_a_run_with_auto_continues_from_its_state():
    _, optimizer, _ = bowl_run(7)
    model, other, _ = bowl_run(4)
    state = copy.deepcopy(other.state_dict())
    twin = Bowl()
    twin.load_state_dict(model.state_dict())
    third = SPZO(two_blocks(twin), lr="auto", perturbations=(2, 4))
    third.load_state_dict(state)
    for _ in range(3):
        third.step(twin)
    assert third.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert third.last_step == optimizer.last_step
    assert third.forwards == optimizer.forwards


def test_what_it_costs_is_counted_and_what_it_does_is_reported():
    """While block 2 moves alone, block 1 is replayed; and there is its curvature to learn."""
    _, optimizer, _ = bowl_run(1)
    report = optimizer.last_step
    share = optimizer.cost_shares[0]
    assert report.lr == tuple(group["lr"] for group in optimizer.param_groups)
    assert report.lr[1] != 1e-4
    assert report.forwards == pytest.approx(1 + 2 * 4 * share)
    _, optimizer, _ = bowl_run(10)
    assert optimizer.last_step.forwards == pytest.approx(1 + 4 * share)
    _, optimizer, _ = bowl_run(18)
    assert optimizer.last_step.forwards == pytest.approx(1 + 2 * 2 + 4 * share)  # block 1 learns


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="lr is 'best'; pass a number, one a block, or 'auto'"):
        SPZO(Bowl().parameters(), lr="best")


def test_a_group_that_comes_too_late_is_refused():
    model, late = Bowl(), nn.Parameter(torch.ones(3))
    optimizer = SPZO(list(model.parameters()), lr="auto")
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    optimizer.step(model)
    with pytest.raises(ValueError, match=r"added after lr='auto' has measured .* before the first"):
        optimizer.add_param_group({"params": [late]})
    assert len(optimizer.param_groups) == 2
    optimizer.step(model)

"""Which blocks move in a step with lr="auto"."""

from __future__ import annotations

import copy

import pytest
import torch
from auto_lr_toys import Bowl, bowl_run, newton_run, policy, two_blocks

from fedspzo import SPZO, split
from fedspzo.auto_lr.central import CentralPolicy


def test_at_first_the_last_of_several_blocks_moves_alone():
    model, optimizer, _ = bowl_run(0, evaluation="layerwise")
    start = copy.deepcopy(model.state_dict())
    moved = []
    for _ in range(17):
        optimizer.step(model)
        moved.append([len(block) for block in optimizer.last_step.seeds])
        if len(moved) == 16:
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, start[name]) == ("layers.2" not in name)
    assert moved == [[0, 4]] * 16 + [[2, 4]]


def test_the_others_join_the_last_block_one_by_one_from_the_back():
    known = policy(1.0, 1.0, 1.0, 1.0)
    joined = []
    for known.losses.steps in range(32):
        joined.append(known.turns((1, 3, 2, 5)))
    assert joined[:6] == [(0, 0, 0, 5)] * 6
    assert joined[6:11] == [(0, 0, 2, 5)] * 5
    assert joined[11:16] == [(0, 3, 2, 5)] * 5
    assert joined[16:] == [(1, 3, 2, 5)] * 16


def test_a_single_block_and_other_estimators_move_from_the_start():
    mezo = SPZO(Bowl().parameters(), lr="auto", perturbations=2)
    mezo.step(Bowl())
    assert [len(block) for block in mezo.last_step.seeds] == [2]
    model = Bowl()
    balanced = SPZO(two_blocks(model), lr="auto", estimator="balanced")
    balanced.step(model)
    assert all(balanced.last_step.seeds)


def of_equal_rates(gradient: float, costs: tuple[float, float]) -> CentralPolicy:
    """All blocks have joined. Both have the same rate; block 2 has gradients of 1."""
    known = policy(2.0, 2.0, last_leads=False)  # both bounded alike
    gradients = [[gradient] * 2, [1.0] * 2]
    known.losses.steps = 16
    trace = 2 / 32 / 0.01  # whose bound, a rate of 0.01, is the lowest
    known.learn(gradients, (trace, trace), costs)
    assert known.rates[0] == known.rates[1] == pytest.approx(0.01)
    known.last_leads = True
    return known


@pytest.mark.parametrize(
    ("gradient", "costs", "interval"),
    [
        (1.0, (1.0, 1.0), 1),  # it promises as much at the same cost
        (1 / 2, (1.0, 1.0), 2),  # a quarter as much: a turn in every second step
        (1.0, (9.0, 1.0), 3),  # for nine times the cost: in every third
        (1e-9, (1.0, 1.0), 8),
        (0.0, (1.0, 1.0), 1),  # nothing is known
    ],
)
def test_a_block_that_promises_less_for_its_cost_waits_for_its_turn(gradient, costs, interval):
    """Turns in proportion to sqrt(lr g^2 / cost), relative to the last block's."""
    known = of_equal_rates(gradient * (1 - 1e-9), costs)
    block = known.blocks[0]
    assert block.turn_interval == interval
    turns = []
    for _ in range(3 * interval):
        counts = known.turns((2, 5))
        turns.append(counts[0])
        assert counts[1] == 5
        block.steps_since_turn = 0 if counts[0] else block.steps_since_turn + 1
    assert turns == ([0] * (interval - 1) + [2]) * 3


def test_turns_are_weighed_by_all_evaluations_of_both_sides(monkeypatch):
    seen = []
    learn = CentralPolicy.learn

    def watched(self, gradients, curvatures, costs, spectrum=None):
        seen.append(costs)
        return learn(self, gradients, curvatures, costs, spectrum)

    monkeypatch.setattr(CentralPolicy, "learn", watched)
    for sides in ("one", "two"):
        newton_run(1, sides=sides)
    one, two = seen
    assert one[0] * 2 == two[0]
    assert one[1] == two[1]  # a block that takes Newton steps has both sides anyway


def test_a_block_that_rests_does_not_decay():
    model, optimizer, _ = bowl_run(0, weight_decay=0.1, evaluation="layerwise")
    start = copy.deepcopy(model.state_dict())
    optimizer.step(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start[name]) == ("layers.2" not in name)


def test_a_middle_block_without_directions_has_nothing_to_learn():
    model = Bowl()
    optimizer = SPZO(split(model, at=(1, 2), example={}), lr="auto", perturbations=(3, 0, 2))
    for _ in range(9):
        optimizer.step(model)
    assert len(optimizer.last_step.losses) == 1 + 2

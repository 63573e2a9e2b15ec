"""lr="auto": the rates, the way back, and that all of it is a function of the losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedspzo import SPZO, split
from fedspzo.auto_lr.auto_rate import EVERY, FALL, HALVE, LEAD, LONGEST, STEADY, AutoRate
from fedspzo.auto_lr.block_statistics import (
    FARTHEST,
    LARGEST,
    LARGEST_LAST,
    LARGEST_ONLY,
    LEARN,
    NEWTON,
    START,
    STIFF,
    WORTH,
    BlockStatistics,
)
from fedspzo.auto_lr.loss_monitor import MEMORY, RISE, SLACK
from fedspzo.auto_lr.newton import LEAST, Spectrum
from fedspzo.auto_lr.trust_ratio import DOUBTED, HALVINGS, predicted
from fedspzo.estimators.defaults import NEWTON_PRODUCTS, newton_evaluations
from fedspzo.estimators.float32 import coefficients
from fedspzo.journal.records import apply
from fedspzo.journal.steps import step_record
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


def groups_of(*blocks: torch.Tensor) -> list[dict]:
    return [{"params": [block], "lr": START} for block in blocks]


TWOS, HALVES = torch.full((100,), 2.0), torch.full((30,), 0.5)
FIVES = torch.full((30,), 5.0)
COSTS = (1.0, 0.04)


@pytest.mark.parametrize(
    ("gradients", "curvatures", "rates"),
    [
        # by size: block 1's 4 directions of |g| = 10 make a step of 3 % of its weights
        ([[10.0] * 4, [1.0]], (None, None), (LARGEST * 2 * 2 / 10, LARGEST_LAST * 0.5)),
        # by worth: with small gradients a step of that size promises too little
        ([[1e-3] * 4, [1.0]], (None, None), (WORTH * 4 * 4, LARGEST_LAST * 0.5)),
        # by curvature, where it is seen and lower than the others
        ([[10.0] * 4, [1.0] * 8], (None, 64.0), (LARGEST * 0.4, STIFF * 8 / 64)),
        # no more than what is stable where all of it is in one direction
        ([[10.0] * 4, [1.0] * 64], (None, 64.0), (LARGEST * 0.4, 1 / 64)),
        ([[10.0] * 4, [1.0]], (-9.0, -9.0), (LARGEST * 0.4, LARGEST_LAST * 0.5)),
        # nothing is known of a block that does not move
        ([[10.0] * 4, []], (None, None), (LARGEST * 0.4, START)),
    ],
)
def test_the_tightest_bound_sets_a_blocks_rate(gradients, curvatures, rates):
    auto, groups = AutoRate(), groups_of(TWOS, HALVES)
    auto.learn(groups, gradients, curvatures, COSTS)
    assert [group["lr"] for group in groups] == pytest.approx(rates)


def test_a_step_at_the_bound_is_that_share_of_the_blocks_weights():
    """The norm of an update along P directions is lr |g| sqrt(d / P)."""
    weights, gradients = torch.full((10**5,), 2.0), [3.0, -4.0]
    auto, groups = AutoRate(), groups_of(weights)
    auto.learn(groups, [gradients], (None,), (1.0,))
    along = coefficients(gradients, groups[0]["lr"])
    update = sum(c * noise(10**5, 5, seed) for seed, c in enumerate(along))
    assert (update.norm() / weights.norm()).item() == pytest.approx(LARGEST_ONLY, rel=0.02)


def test_groups_that_are_no_blocks_are_bounded_like_an_only_block():
    """As with and without weight decay; none of them is a head that may lead."""
    model = Bowl(1.0)
    halves = [{"params": list(layer.parameters())} for layer in model.layers[:2]]
    optimizer = SPZO(halves, lr="auto")
    optimizer.step(model)
    gradient = abs(optimizer.last_step.gradients[0][0])
    rates = [group["lr"] for group in optimizer.param_groups]
    bound = min(LARGEST_ONLY * 8 / gradient, WORTH * 8**2)
    assert rates == pytest.approx([optimizer.auto.factor * bound] * 2, rel=1e-3)
    anchored = SPZO(halves, lr="auto", estimator="anchored", perturbations=(1, 1))
    anchored.step(model)
    assert [len(block) for block in anchored.last_step.seeds] == [1, 1]


def test_a_block_of_zeros_is_bounded_by_curvature_alone():
    auto, groups = AutoRate(), groups_of(TWOS, torch.zeros(50))
    auto.learn(groups, [[10.0], [1.0]], (None, 64.0), COSTS)
    assert groups[1]["lr"] == STIFF / 64
    auto, groups = AutoRate(), groups_of(torch.zeros(50))
    auto.learn(groups, [[10.0]], (None,), (1.0,))
    assert groups[0]["lr"] == START


def test_rates_are_learned_from_the_first_turns_means_and_then_kept():
    auto, groups = AutoRate(), groups_of(TWOS, HALVES)
    for step in range(LEARN):
        assert auto.bending((1, 1))
        bend = 32.0 + 64 * (step % 2)
        auto.learn(groups, [[10.0 * (1 - step % 2)], [1.0]], (None, bend), COSTS)
    mean = math.sqrt(10.0**2 / 2)
    assert groups[0]["lr"] == pytest.approx(LARGEST * 2 / mean)
    assert groups[1]["lr"] == pytest.approx(STIFF / 64)
    assert not auto.bending((1, 1))
    before = copy.deepcopy(groups)
    auto.learn(groups, [[1.0], [1.0]], (None, 1.0), COSTS)
    assert [g["lr"] for g in groups] == [g["lr"] for g in before]


def test_in_the_long_run_a_led_blocks_rate_falls_so_that_all_its_noise_has_a_bound():
    auto, groups = AutoRate(), groups_of(TWOS, HALVES)
    only, alone = AutoRate(), groups_of(TWOS)
    rates = []
    for _ in range(4 * STEADY):
        auto.learn(groups, [[10.0], [1.0]], (None, 64.0), COSTS)
        only.learn(alone, [[10.0]], (None,), (1.0,))
        rates.append([group["lr"] for group in (*groups, *alone)])
    first = [LARGEST * 0.2, STIFF / 64, LARGEST_ONLY * 0.2]
    assert rates[LEARN - 1] == rates[STEADY - 1] == pytest.approx(first)
    assert rates[-1] == pytest.approx([first[0] / 4**FALL, *first[1:]])
    for _ in range(5):  # it does not fall while it waits
        auto.learn(groups, [[], [1.0]], (None, 64.0), COSTS)
    assert groups[0]["lr"] == rates[-1][0]
    assert FALL <= 1 < 2 * FALL  # their sum has no bound, that of their squares has one


def test_a_rate_stays_within_its_size_when_gradients_grow():
    """Noise that makes gradients larger must not make for more noise."""
    auto, groups = AutoRate(), groups_of(TWOS)
    for _ in range(LEARN):
        auto.learn(groups, [[10.0]], (None,), (1.0,))
    for _ in range(60):
        auto.learn(groups, [[1000.0]], (None,), (1.0,))
    assert groups[0]["lr"] == pytest.approx(LARGEST_ONLY * 2 / 1000, rel=1e-3)
    for _ in range(60):
        auto.learn(groups, [[1.0]], (None,), (1.0,))
    assert groups[0]["lr"] == pytest.approx(LARGEST_ONLY * 2 / 10)


@pytest.mark.parametrize("cut", [True, False])
def test_one_batch_with_an_outlier_moves_no_block_farther_than_any_step_may(cut):
    """Its own gradient, not only the mean with those before it, bounds the step."""
    auto, groups = AutoRate(cut=cut), groups_of(TWOS, HALVES)
    usual, outlier = [[10.0, -10.0], [1.0, 1.0]], [[-300.0, 400.0], [40.0, 30.0]]
    for _ in range(STEADY):
        for along, gradient in zip(
            auto.learn(groups, usual, (None, None), COSTS), usual, strict=True
        ):
            assert along == pytest.approx(gradient)
    followed = auto.learn(groups, outlier, (None, None), COSTS)
    largest = (LARGEST, LARGEST_LAST) if cut else (LARGEST_ONLY,) * 2
    falls = ((STEADY / (STEADY + 1)) ** FALL if cut else 1.0, 1.0)
    for block, size in enumerate((2.0, 0.5)):
        along = coefficients(followed[block], groups[block]["lr"])
        length = math.hypot(*along)  # root mean square, of a weight's change
        assert length == pytest.approx(largest[block] * falls[block] * size)
        assert along[0] / along[1] == pytest.approx(outlier[block][0] / outlier[block][1])
    rounds = AutoRate(central=False)  # whose rate is for the round to come
    rounds.learn(groups, usual, (None, None), COSTS)
    assert rounds.learn(groups, outlier, (None, None), COSTS) == tuple(outlier)


def test_at_first_the_last_of_several_blocks_moves_alone():
    model = Bowl(1.0)
    blocks = split(model, at=-1, example={})
    optimizer = SPZO(blocks, lr="auto", perturbations=(2, 4), evaluation="layerwise")
    start = copy.deepcopy(model.state_dict())
    moved = []
    for _ in range(LEAD + 1):
        optimizer.step(model)
        moved.append([len(block) for block in optimizer.last_step.seeds])
        if len(moved) == LEAD:
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, start[name]) == ("layers.2" not in name)
    assert moved == [[0, 4]] * LEAD + [[2, 4]]


def test_the_others_join_the_last_block_one_by_one_from_the_back():
    auto = AutoRate(
        blocks=[
            BlockStatistics(1.0),
            BlockStatistics(1.0),
            BlockStatistics(1.0),
            BlockStatistics(1.0),
        ]
    )
    joined = []
    for auto.steps in range(2 * LEAD):
        joined.append(auto.turns((1, 3, 2, 5)))
    third, second = math.ceil(LEAD / 3), math.ceil(2 * LEAD / 3)
    assert joined[:third] == [(0, 0, 0, 5)] * third
    assert joined[third:second] == [(0, 0, 2, 5)] * (second - third)
    assert joined[second:LEAD] == [(0, 3, 2, 5)] * (LEAD - second)
    assert joined[LEAD:] == [(1, 3, 2, 5)] * LEAD


def test_each_blocks_first_step_is_looked_at():
    auto = AutoRate(blocks=[BlockStatistics(1.0) for _ in range(4)])
    first_steps = 0
    for step in range(2 * LEAD):
        auto.steps = step
        moved = auto.turns((1, 1, 1, 1))
        new = any(now and not seen.turns for seen, now in zip(auto.blocks, moved, strict=True))
        for seen, now in zip(auto.blocks, moved, strict=True):
            seen.rested += 1
            if now:
                seen.add(1.0, None)
        auto.steps += 1
        assert auto.due() >= new
        first_steps += new
    assert first_steps == 4


def test_a_single_block_and_other_estimators_move_from_the_start():
    mezo = SPZO(Bowl(1.0).parameters(), lr="auto", perturbations=2)
    mezo.step(Bowl(1.0))
    assert [len(block) for block in mezo.last_step.seeds] == [2]
    model = Bowl(1.0)
    balanced = SPZO(split(model, at=-1, example={}), lr="auto", estimator="balanced")
    balanced.step(model)
    assert all(balanced.last_step.seeds)


def ready(gradient: float, costs: tuple[float, float]) -> AutoRate:
    """Past the lead; block 2 has 5 directions of the same rate, and gradients of 1."""
    auto, groups = AutoRate(steps=LEAD), groups_of(TWOS, TWOS)
    auto.learn(groups, [[gradient] * 2, [1.0] * 5], (None, None), costs)
    for group in groups:
        group["lr"] = 0.1
    auto._pace([0.1, 0.1], costs)
    return auto


@pytest.mark.parametrize(
    ("gradient", "costs", "wait"),
    [
        (1.0, (1.0, 1.0), 1),  # it promises as much at the same cost
        (1 / 2, (1.0, 1.0), 2),  # a quarter as much: a turn in every second step
        (1.0, (9.0, 1.0), 3),  # for nine times the cost: in every third
        (1e-9, (1.0, 1.0), LONGEST),
        (0.0, (1.0, 1.0), 1),  # nothing is known
    ],
)
def test_a_block_that_promises_less_for_its_cost_waits_for_its_turn(gradient, costs, wait):
    """Turns in proportion to sqrt(lr g^2 / cost), relative to the last block's."""
    auto = ready(gradient * (1 - 1e-9), costs)
    assert auto.blocks[0].wait == wait
    turns = []
    for _ in range(3 * wait):
        counts = auto.turns((2, 5))
        turns.append(counts[0])
        assert counts[1] == 5
        auto.blocks[0].rested = 0 if counts[0] else auto.blocks[0].rested + 1
    assert turns == ([0] * (wait - 1) + [2]) * 3


def known(values: list[float], *unknown: float) -> Spectrum:
    """Of a diagonal Hessian, along each direction; what it is along more of them is not known."""
    vectors = torch.eye(len(values) + len(unknown), dtype=torch.float64)[:, : len(values)]
    trace = sum((*values, *unknown)) / len(vectors)
    return Spectrum(torch.tensor(values, dtype=torch.float64), vectors, trace)


def test_where_its_curvature_is_known_the_last_block_takes_half_a_damped_newton_step():
    """Damped by the mean eigenvalue but the largest, of the first turns or later, if larger."""
    auto, groups = AutoRate(steps=LEAD), groups_of(TWOS, FIVES)
    spectrum = known([4.0, -1.0, 12.0], 7.0)
    gradients = ([1.0], [8.0, 10.0, 16.0, 0.0])
    first, second = auto.learn(groups, gradients, (None, 0.0), (1.0, 2.0), spectrum)
    assert first == [1.0]
    assert second == pytest.approx([8 / 2, 10 / 1.25, 16 / 4, 0])  # (|H| / 4 + 1)^-1 g
    assert groups[1]["lr"] == pytest.approx(NEWTON * 4 / 4)
    assert auto.blocks[1].lately == pytest.approx((8 * 4 + 10 * 8 + 16 * 4) / 4)
    worth = groups[0]["lr"] * 1.0 / 1.0, groups[1]["lr"] * auto.blocks[1].lately / 2.0
    assert auto.blocks[0].wait == min(LONGEST, int(math.sqrt(worth[1] / worth[0])))
    full = groups[1]["lr"]
    for turn in range(2, 4 * STEADY + 1):
        auto.learn(groups, gradients, (None, 0.0), (1.0, 2.0), spectrum)
        assert groups[1]["lr"] == pytest.approx(full * min(1.0, STEADY / turn) ** FALL)
    auto, groups = AutoRate(steps=LEAD), groups_of(TWOS, FIVES)
    auto.learn(groups, gradients, (None, 0.0), (1.0, 2.0), spectrum)
    steeper = known([100.0] * 3, 100.0)
    for _ in range(3 * LEARN):
        auto.learn(groups, gradients, (None, 0.0), (1.0, 2.0), steeper)
    fall = (STEADY / (1 + 3 * LEARN)) ** FALL
    assert groups[1]["lr"] == pytest.approx(fall * NEWTON * 4 / 100, rel=1e-2)
    for _ in range(3 * LEARN):  # flatter than it was at first: that is not forgotten
        auto.learn(groups, gradients, (None, 0.0), (1.0, 2.0), spectrum)
    fall = (STEADY / (1 + 6 * LEARN)) ** FALL
    assert groups[1]["lr"] == pytest.approx(fall * NEWTON * 4 / ((4 + 7 * 100) / 8))
    flat = known([0.0] * 3, 0.0)
    auto, groups = AutoRate(steps=LEAD), groups_of(TWOS, FIVES)
    assert list(auto.learn(groups, gradients, (None, 0.0), (1.0, 2.0), flat)[1]) == gradients[1]


def test_a_newton_step_is_no_longer_than_the_blocks_weights():
    """With few examples a batch all of its gradient may be its own."""
    auto, groups = AutoRate(steps=LEAD), groups_of(TWOS, HALVES)
    spectrum = known([4.0, 4.0], 4.0)
    for scale, factor in ((1.0, 1.0), (1e3, 1.0), (1e3, 0.25)):
        auto.factor = factor
        gradients = ([1.0], [1.5 * scale, -2.0 * scale, 0.0])
        damped = auto.learn(groups, gradients, (None, 0.0), (1.0, 2.0), spectrum)[1]
        step = [groups[1]["lr"] * g / 3 for g in damped]
        full = NEWTON * math.hypot(1.5, 2.0) * scale / (4 + 4)
        assert math.hypot(*step) == pytest.approx(factor * min(full, FARTHEST * 0.5))
        assert step[0] / step[1] == pytest.approx(-0.75)


def test_a_batch_that_bends_in_few_ways_damps_by_them():
    assert known([32.0], *[0.0] * 7).typical == pytest.approx(LEAST * 32 / 8)
    assert known([-32.0], 32.0, *[0.0] * 6).typical == pytest.approx(32 / 7)
    assert known([1.0, 30.0], 2.0, 3.0).typical == pytest.approx(2)


def test_newtons_step_is_exact_where_the_gradient_lies_in_two_ways_that_bend():
    """Two products with the Hessian span them; of one way one is enough, of none none."""
    generator = torch.Generator().manual_seed(2)
    hessian = 0.5 * torch.eye(6, dtype=torch.float64)
    ways = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q
    hessian += ways @ torch.diag(torch.tensor([8.0, -3.0], dtype=torch.float64)) @ ways.T
    asked = []

    def product(pivot: list[float]) -> list[float]:
        assert math.hypot(*pivot) == pytest.approx(1)
        asked.append(pivot)
        return (hessian @ torch.tensor(pivot, dtype=torch.float64)).tolist()

    trace = hessian.trace().item() / 6
    inside = (ways @ torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist()
    spectrum = Spectrum.of(inside, trace, product)
    assert sorted(spectrum.values.tolist()) == pytest.approx([-2.5, 8.5])
    assert spectrum.typical == pytest.approx((4 * 0.5 + 2.5) / 5)
    sizes, vectors = torch.linalg.eigh(hessian)
    exact = vectors @ ((vectors.T @ torch.tensor(inside).double()) / (sizes.abs() / 0.5 + 1))
    assert spectrum.damp(inside, 0.5) == pytest.approx(exact.tolist())
    assert len(asked) == NEWTON_PRODUCTS
    along_one = ways[:, 0].tolist()
    assert Spectrum.of(along_one, trace, product).values.tolist() == pytest.approx([8.5])
    assert len(asked) == NEWTON_PRODUCTS + 1  # these span it all
    assert Spectrum.of([0.0] * 6, trace, product).damp([0.0] * 6, 1.0) == [0.0] * 6
    nothing = Spectrum.of([math.nan] * 6, trace, product)
    assert len(nothing.values) == 0
    bad = Spectrum.of(inside, trace, lambda pivot: [math.inf] * 6)
    assert bad.values.isfinite().all()


@pytest.mark.parametrize("directions", [12, 32])
@pytest.mark.parametrize("count", [2, 8])
def test_batches_of_a_few_noisy_examples_do_no_lasting_harm(count, directions):
    """Newton steps of a head would fit each of them in whatever way rounding leaves open."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 2))
    x = torch.randn(1000, 128)
    y = (x[:, 0] + x[:, 1] > 0).long()
    optimizer = SPZO(
        split(model, at=-1, example={"input": x}),
        lr="auto",
        perturbations=(0, directions),
        cost_shares=(0.001,),
    )
    with torch.no_grad():
        before = nn.functional.cross_entropy(model(x), y).item()
        for step in range(24):
            batch = slice(count * step, count * (step + 1))
            optimizer.step(lambda b=batch: nn.functional.cross_entropy(model(x[b]), y[b]))
        assert nn.functional.cross_entropy(model(x), y).item() < 1.5 * before


def test_a_head_bent_a_thousand_times_as_much_one_way_is_learned_along_the_others_too():
    """A regression whose features have a large mean: gradient steps see little else."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(32, generator=generator)
    weight -= weight.mean()
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 1, bias=False))
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[1].weight)

    def loss() -> torch.Tensor:
        x = torch.randn(64, 32, generator=torch.Generator().manual_seed(draws)) + 6
        return (model(x).squeeze(1) - (x - 6) @ weight).square().mean()

    def after(steps: int, **settings: object) -> float:
        nonlocal draws
        nn.init.zeros_(model[1].weight)
        optimizer = SPZO(split(model, at=-1, example={"input": torch.ones(1, 32)}), **settings)
        for draws in range(steps):  # noqa: B007
            optimizer.step(loss)
        return loss().item()

    draws = 0
    start = loss().item()
    newton = after(40, lr="auto", perturbations=(0, 8), cost_shares=(0.01,))
    assert newton < 0.1 * start
    plain = after(40, lr="auto", perturbations=(0, 8), cost_shares=(0.1,))  # too dear to be solved
    assert plain > 0.5 * start


def solved_run(steps: int, **settings: object) -> tuple[nn.Module, SPZO, Callable]:
    """Two blocks, the second of which is solved along its directions."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    optimizer = SPZO(
        split(model, at=-1, example={"input": x}),
        lr="auto",
        **{"perturbations": (2, 8), "cost_shares": (0.01,), **settings},
    )

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x).float(), y)

    for _ in range(steps):
        optimizer.step(loss)
    return model, optimizer, loss


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_solved_steps_are_counted_continue_from_a_state_and_replay_to_the_bit(evaluation):
    model, optimizer, _ = solved_run(LEAD + 4, evaluation=evaluation)
    start, other, loss = solved_run(0, evaluation=evaluation)
    copied = copy.deepcopy(start)
    for number in range(LEAD + 4):
        if number == 5:
            other.load_state_dict(copy.deepcopy(other.state_dict()))
        other.step(loss)
        report = other.last_step
        moved = 2 if report.gradients[0] else 0
        look = (1 if moved else 0.01) if report.ratio is not None else 0
        assert report.forwards == pytest.approx(1 + moved + 0.01 * newton_evaluations(8) + look)
        apply(step_record(report, number), split(copied, at=-1, example={}).groups)
    assert other.last_step == optimizer.last_step
    for end, again, replayed in zip(
        model.parameters(), start.parameters(), copied.parameters(), strict=True
    ):
        assert torch.equal(end, again)
        if evaluation == "layerwise":  # in place, evaluations leave rounding errors
            assert torch.equal(end, replayed)


def test_by_the_rule_a_cheap_head_has_as_many_directions_as_are_solved():
    for share, count in ((0.001, 32), (0.02, 12), (0.1, 9)):  # the last by the rule for all
        _, optimizer, _ = solved_run(1, perturbations=None, cost_shares=(share,))
        assert optimizer.param_groups[1]["perturbations"] == count
        assert len(optimizer.last_step.seeds[1]) == count


@pytest.mark.parametrize("bad", [3, 17, 20])  # of a direction, at a pivot, beside it
def test_a_loss_that_is_not_finite_skips_a_solved_step(bad):
    _, optimizer, loss = solved_run(3)
    before = copy.deepcopy(optimizer.auto)
    calls = iter(range(10**6))
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step(lambda: (math.nan if next(calls) == bad else 1.0) * loss())
    assert optimizer.last_step.skipped
    assert optimizer.auto == replace(before, lost=1)  # which counts it, and learns nothing
    assert optimizer.step(loss) < math.inf
    assert optimizer.auto.lost == 0
    assert not optimizer.last_step.skipped


def test_weight_decay_or_many_directions_leave_the_last_block_to_gradient_steps():
    """A Newton step's rate is an inverse curvature, by which weights would decay."""
    for settings in ({"weight_decay": 0.1}, {"perturbations": (0, 33), "cost_shares": (1e-4,)}):
        _, optimizer, _ = solved_run(2, **settings)
        assert optimizer.auto.blocks[1].bend == 0
    assert solved_run(2)[1].auto.blocks[1].bend > 0


def test_one_block_by_the_anchored_estimator_finds_its_rate():
    model = Bowl(1.0)
    optimizer = SPZO(model.named_parameters(), lr="auto", estimator="anchored")
    optimizer.step(model)
    assert optimizer.param_groups[0]["perturbations"] == 3
    assert optimizer.param_groups[0]["lr"] != START


def test_turns_are_weighed_by_all_evaluations_of_both_sides():
    costs = []
    for sides in ("one", "two"):
        _, optimizer, loss = solved_run(0, sides=sides)
        seen: list = []
        learn = optimizer.auto.learn
        optimizer.auto.learn = lambda *args, s=seen, f=learn: (s.append(args[3]), f(*args))[1]
        optimizer.step(loss)
        costs.append(seen[0])
    assert costs[0][0] * 2 == costs[1][0]
    assert costs[0][1] == costs[1][1]  # a solved block has both sides anyway


def test_bfloat16_takes_solved_steps_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).to(torch.bfloat16)
    x = torch.randn(16, 4).bfloat16()
    y = x.float()[:, :3].argmax(1)
    optimizer = SPZO(
        split(model, at=-1, example={"input": x}),
        lr="auto",
        perturbations=(0, 8),
        cost_shares=(0.01,),
    )
    losses = [
        optimizer.step(lambda: nn.functional.cross_entropy(model(x).float(), y)) for _ in range(40)
    ]
    assert losses[-1] < 0.7 * losses[0]


def test_a_step_without_finite_gradients_teaches_nothing():
    auto, groups = AutoRate(), groups_of(TWOS)
    auto.learn(groups, [[math.nan]], (None,), (1.0,))
    assert not auto.blocks
    assert groups[0]["lr"] == START


def test_what_halved_the_rates_halves_those_still_to_be_learned():
    auto, groups = AutoRate(), groups_of(TWOS)
    auto.learn(groups, [[10.0]], (None,), (1.0,))
    rate = groups[0]["lr"]
    auto.scale(groups, HALVE)
    assert groups[0]["lr"] == HALVE * rate
    auto.learn(groups, [[10.0]], (None,), (1.0,))
    assert groups[0]["lr"] == HALVE * rate


def test_the_first_step_is_looked_at_and_later_some():
    _, optimizer, _ = a_run(1.0, 0)
    looked = []
    model = Bowl(1.0)
    optimizer = SPZO(split(model, at=-1, example={}), lr="auto", perturbations=(2, 4))
    for _ in range(2 * EVERY + 1):
        optimizer.step(model)
        looked.append(optimizer.last_step.ratio is not None)
    assert [step for step, did in enumerate(looked) if did] == [0, EVERY, 2 * EVERY]


def test_a_block_that_waits_out_of_step_with_the_looks_is_looked_at_too():
    auto, groups = AutoRate(steps=LEAD), groups_of(TWOS, TWOS)
    looked = 0
    for step in range(20 * EVERY):
        auto.steps += 1
        turn = step % EVERY == 3  # never when a look is due by the number of steps
        auto.learn(groups, [[1.0] * turn, [1.0]], (None, None), (1.0, 1.0))
        looked += auto.due() and turn
    assert looked == 3  # in twenty turns: the first, and every ninth after it


def test_one_lucky_batch_is_no_best_loss_to_fall_behind():
    auto = AutoRate()
    auto.recent.append(({1: 0.1},))
    for loss in (0.35, 0.66, 0.45, 0.61, 0.9, 0.66, 0.5, 0.7):
        assert not auto.diverged(loss)
        auto.recent.append(({1: 0.1},))
    assert any(auto.diverged(3.0) for _ in range(3))


def test_a_drift_slower_than_what_can_be_taken_back_is_noticed_all_the_same():
    auto = AutoRate()
    for step in range(100):
        assert not auto.diverged(1.0 - 0.006 * step)
        auto.recent.append(({step: 0.1},))
    best = auto.smoothed
    losses = (best + 0.001 * step for step in range(300))
    for step, loss in enumerate(losses, 100):
        if auto.diverged(loss):
            break
        auto.recent.append(({step: 0.1},))
    bound = (RISE - 1) * best + SLACK * auto.first
    assert bound < auto.smoothed - best < bound + 0.001
    (undone,) = auto.take_back()
    assert undone == dict.fromkeys(range(step - MEMORY, step), -0.1)


def test_losses_that_double_are_noticed_in_the_first_steps_too():
    auto, noticed = AutoRate(), []
    for loss in (0.7, 1.4, 2.8, 5.6):
        noticed.append(auto.diverged(loss))
        auto.recent.append(({1: 0.1},))
    assert noticed == [False, False, True, True]


def test_the_prediction_is_the_derivative_along_the_update():
    assert predicted([[2.0, -1.0], [3.0]], [[-0.5, 0.25], [-0.1]]) == pytest.approx(-1.55)


@pytest.mark.parametrize("curve", [1e-3, 1.0, 1e3])
def test_the_rate_found_fits_the_curvature(curve):
    """Within the range in which a quadratic's loss falls: above 0 and below 2 P / trace."""
    _, optimizer, losses = a_run(curve, 60)
    assert losses[-1] < 0.2 * losses[0]
    rate = optimizer.param_groups[0]["lr"]
    assert 0.02 < rate * curve * DIM / 2 < 2


FAR = 2.0**20


def too_fast(**settings) -> tuple[Bowl, SPZO]:
    """An optimizer whose rates are far above what the bounds allow."""
    model = Bowl(1.0)
    blocks = split(model, at=-1, example={})
    optimizer = SPZO(blocks, lr="auto", perturbations=(2, 4), **settings)
    optimizer.auto = AutoRate(factor=FAR, central=False)
    return model, optimizer


def test_a_step_that_breaks_its_promise_is_halved_until_it_keeps_it():
    model, optimizer = too_fast()
    optimizer.step(model)
    report = optimizer.last_step
    halvings = math.log2(FAR / optimizer.auto.factor)
    assert halvings == int(halvings) > 1
    assert report.lr == tuple(group["lr"] for group in optimizer.param_groups)
    assert report.ratio >= DOUBTED
    assert report.undone is None
    for gradients, updates, rate in zip(
        report.gradients, report.coefficients, report.lr, strict=True
    ):
        assert updates == pytest.approx(coefficients(gradients, rate), rel=1e-6)
    fall = report.loss - model().item()
    promise = -predicted(report.gradients, report.coefficients)
    assert fall / promise == pytest.approx(report.ratio, rel=1e-3)
    share = optimizer.cost_shares[0]
    assert report.forwards == pytest.approx(1 + 2 + 2 * 4 * share + halvings + 1)


def test_without_trust_nothing_moves():
    """Where even the smallest step raises its batch's loss, it is not made."""
    model, optimizer = too_fast(evaluation="layerwise")
    before = copy.deepcopy(model.state_dict())
    calls, points = 0, 2 + 1 + 2 + 2 * 4  # the first step's measurement, and its own

    def evaluate() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return model() + (1e3 if calls > points else 0.0)

    optimizer.step(evaluate)
    report = optimizer.last_step
    assert report.undone == "step"
    assert report.ratio < DOUBTED
    assert calls == points + HALVINGS
    assert not any(c for block in report.coefficients for c in block)
    assert optimizer.auto.factor == FAR * HALVE**HALVINGS
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_takes_back_the_steps_since_the_best_loss(dtype):
    """On other data all at once; bit for bit what the reports' terms make of the start."""
    before = LEARN + 4
    model, optimizer, _ = a_run(1.0, before, dtype, evaluation="layerwise")
    start = Bowl(1.0, dtype)
    best = optimizer.auto.best
    rate = optimizer.param_groups[1]["lr"]
    reports = []
    for _ in range(30):
        optimizer.step(lambda: 20 * model())
        reports.append(optimizer.last_step)
        if reports[-1].undone == "steps":
            break
    assert reports[-1].undone == "steps"
    assert optimizer.param_groups[1]["lr"] <= HALVE * rate
    assert optimizer.auto.best <= best
    assert optimizer.auto.recent == []
    assert optimizer.auto.since == 0  # what comes is compared with itself
    # the whole run again, from its start, as a journal replays it
    again, other, _ = a_run(1.0, 0, dtype, evaluation="layerwise")
    for number in range(before + len(reports)):
        other.step(again if number < before else lambda: 20 * again())
        apply(step_record(other.last_step, number), split(start, at=-1, example={}).groups)
    for left, mid, right in zip(
        model.parameters(), again.parameters(), start.parameters(), strict=True
    ):
        assert torch.equal(left, mid)
        assert torch.equal(mid, right)


def test_a_promise_below_the_losses_resolution_teaches_nothing():
    """As with a loss in bfloat16, or one with a large constant in it."""
    model = Bowl(1.0)
    optimizer = SPZO(split(model, at=-1, example={}), lr="auto", perturbations=(2, 4))
    for _ in range(EVERY + 1):
        optimizer.step(lambda: model() + 1e9)
        assert optimizer.last_step.undone is None
    assert optimizer.auto.factor == 1.0


def test_negative_losses_diverge_by_rising_too():
    auto = AutoRate()
    auto.recent.append(({1: 0.1},))
    for number in range(40):
        assert not auto.diverged(-10 + 0.1 * (-1) ** number)
        auto.recent.append(({1: 0.1},))
    assert any(auto.diverged(-2.0) for _ in range(20))


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_last_block_of_zeros_has_no_size_that_its_perturbations_gave_it(evaluation):
    model = Bowl(1.0)
    with torch.no_grad():
        model.layers[2].shift.zero_()
    blocks = split(model, at=-1, example={})
    optimizer = SPZO(blocks, lr="auto", perturbations=(2, 4), evaluation=evaluation)
    optimizer.step(model)
    assert optimizer.auto.blocks[1].size == 0.0
    assert optimizer.auto.blocks[0].size == pytest.approx(8.0)


def test_a_block_that_rests_does_not_decay():
    model = Bowl(1.0)
    optimizer = SPZO(
        split(model, at=-1, example={}),
        lr="auto",
        perturbations=(2, 4),
        weight_decay=0.1,
        evaluation="layerwise",
    )
    start = copy.deepcopy(model.state_dict())
    optimizer.step(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start[name]) == ("layers.2" not in name)


def test_a_middle_block_without_directions_has_nothing_to_learn():
    model = Bowl(1.0)
    optimizer = SPZO(split(model, at=(1, 2), example={}), lr="auto", perturbations=(3, 0, 2))
    for _ in range(LEARN + 1):
        optimizer.step(model)
    assert len(optimizer.last_step.losses) == 1 + 2


def test_a_state_is_loaded_as_a_copy_and_another_releases_is_refused():
    model, optimizer, _ = a_run(1.0, LEARN + 2)
    state = optimizer.state_dict()
    before = copy.deepcopy(state["spzo"]["auto"])
    optimizer.load_state_dict(state)
    for _ in range(3):
        optimizer.step(model)
    assert state["spzo"]["auto"] == before
    del state["spzo"]["auto"]["blocks"]
    with pytest.raises(ValueError, match="another release's lr='auto'"):
        optimizer.load_state_dict(state)


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
    """While block 2 moves alone, a look replays block 1; and there is its curvature to learn."""
    _, optimizer, _ = a_run(1.0, 1)
    report = optimizer.last_step
    share = optimizer.cost_shares[0]
    assert report.lr == tuple(group["lr"] for group in optimizer.param_groups)
    assert report.lr[1] != START
    assert report.ratio >= DOUBTED
    looks = round((report.forwards - 1) / share - 2 * 4)
    assert looks >= 1
    assert report.forwards == pytest.approx(1 + (2 * 4 + looks) * share)
    _, optimizer, _ = a_run(1.0, LEARN + 2)
    assert optimizer.last_step.forwards == pytest.approx(1 + 4 * share)
    _, optimizer, _ = a_run(1.0, LEAD + 2)
    assert optimizer.last_step.forwards == pytest.approx(1 + 2 + 4 * share)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="lr is 'best'; pass a number, one a block, or 'auto'"):
        SPZO(Bowl(1.0).parameters(), lr="best")


def test_a_group_that_comes_too_late_is_refused():
    model, late = Bowl(1.0), nn.Parameter(torch.ones(3))
    optimizer = SPZO(list(model.parameters()), lr="auto")
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    optimizer.step(model)
    with pytest.raises(ValueError, match=r"added after lr='auto' has measured .* before the first"):
        optimizer.add_param_group({"params": [late]})
    assert len(optimizer.param_groups) == 2
    optimizer.step(model)

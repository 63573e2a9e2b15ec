"""Newton steps of a last block whose evaluations are cheap."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from auto_lr_toys import newton_run, policy
from torch import nn

from fedspzo import SPZO, split
from fedspzo.auto_lr.newton import Spectrum
from fedspzo.journal.records import apply
from fedspzo.journal.steps import step_record

GRADIENTS = ([1.0], [8.0, 10.0, 16.0, 0.0])
COSTS = (1.0, 2.0)


def spectrum(known: list[float], *unknown: float) -> Spectrum:
    """Of a diagonal Hessian; its eigenvalues along some of the directions are not known."""
    vectors = torch.eye(len(known) + len(unknown), dtype=torch.float64)[:, : len(known)]
    trace = sum((*known, *unknown)) / len(vectors)
    return Spectrum(torch.tensor(known, dtype=torch.float64), vectors, trace)


MEAN_4 = spectrum([4.0, -1.0, 12.0], 7.0)
"""Of eigenvalues whose sizes have the mean 4, but for the largest."""


def test_a_last_block_of_known_curvature_takes_a_quarter_of_a_damped_newton_step():
    """Damped by the mean size of the eigenvalues but the largest: (|H| / 4 + 1)^-1 g."""
    known = policy(2.0, 5.0)
    first, second = known.learn(GRADIENTS, (None, 0.0), COSTS, MEAN_4)
    assert first == [1.0]
    assert second == pytest.approx([8 / 2, 10 / 1.25, 16 / 4, 0])
    # along each of 4 directions lr g / 4, which is a quarter of g / (|H| + 4)
    assert [known.rates[1] * g / 4 for g in second] == pytest.approx(
        [8 / 8 / 4, 10 / 5 / 4, 16 / 16 / 4, 0]
    )
    assert known.blocks[1].smoothed_square == pytest.approx((8 * 4 + 10 * 8 + 16 * 4) / 4)


def test_a_newton_step_of_a_head_makes_the_body_wait():
    known = policy(2.0, 5.0)
    known.learn(GRADIENTS, (None, 0.0), COSTS, MEAN_4)
    body, head = known.rates
    promises = body * 1.0 / 1.0, head * (8 * 4 + 10 * 8 + 16 * 4) / 4 / 2.0
    assert known.blocks[0].turn_interval == min(8, int(math.sqrt(promises[1] / promises[0])))


def test_newton_steps_fall_in_the_long_run_too():
    known = policy(2.0, 5.0)
    for turn in range(1, 81):
        known.learn(GRADIENTS, (None, 0.0), COSTS, MEAN_4)
        assert known.rates[1] == pytest.approx(0.25 * min(1.0, 20 / turn) ** 0.75)


def test_newton_steps_are_damped_by_the_first_eight_turns_or_later_ones_if_steeper():
    steeper = spectrum([100.0] * 3, 100.0)

    def rate(turns: int) -> float:
        """Without what the number of turns makes of it."""
        return known.rates[1] / min(1.0, 20 / turns) ** 0.75

    known = policy(2.0, 5.0)
    known.learn(GRADIENTS, (None, 0.0), COSTS, MEAN_4)
    for _ in range(24):
        known.learn(GRADIENTS, (None, 0.0), COSTS, steeper)
    assert rate(25) == pytest.approx(1 / 100, rel=1e-2)
    for _ in range(24):  # flatter than it was at first: that is not forgotten
        known.learn(GRADIENTS, (None, 0.0), COSTS, MEAN_4)
    assert rate(49) == pytest.approx(1 / ((4 + 7 * 100) / 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_moves_in_place_leave_no_rounding_in_the_last_block(dtype: torch.dtype):
    """While it moves alone, its weights have the same bits wherever its evaluations are made."""
    in_place, layerwise = (
        newton_run(6, dtype=dtype, evaluation=evaluation)[0]
        for evaluation in ("in_place", "layerwise")
    )
    for one, other in zip(in_place.parameters(), layerwise.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_block_without_curvature_follows_its_gradient():
    known = policy(2.0, 5.0)
    flat = spectrum([0.0] * 3, 0.0)
    assert list(known.learn(GRADIENTS, (None, 0.0), COSTS, flat)[1]) == GRADIENTS[1]


def test_a_batch_with_curvature_along_few_directions_damps_by_them():
    """By their share in the mean of all, or by next to nothing where there is nothing else."""
    assert spectrum([32.0], *[0.0] * 7).typical_eigenvalue == pytest.approx(32 / 8 * 1e-6)
    assert spectrum([-32.0], 32.0, *[0.0] * 6).typical_eigenvalue == pytest.approx(32 / 7)
    assert spectrum([1.0, 30.0], 2.0, 3.0).typical_eigenvalue == pytest.approx(2)


def test_newtons_step_is_exact_where_the_gradient_lies_along_two_curved_directions():
    """Two products with the Hessian span them; for one direction one is enough, for none none."""
    generator = torch.Generator().manual_seed(2)
    hessian = 0.5 * torch.eye(6, dtype=torch.float64)
    curved = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q
    hessian += curved @ torch.diag(torch.tensor([8.0, -3.0], dtype=torch.float64)) @ curved.T
    asked = []

    def product(pivot: list[float]) -> list[float]:
        assert math.hypot(*pivot) == pytest.approx(1)
        asked.append(pivot)
        return (hessian @ torch.tensor(pivot, dtype=torch.float64)).tolist()

    trace = hessian.trace().item() / 6
    inside = (curved @ torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist()
    found = Spectrum.of(inside, trace, product)
    assert sorted(found.values.tolist()) == pytest.approx([-2.5, 8.5])
    assert found.typical_eigenvalue == pytest.approx((4 * 0.5 + 2.5) / 5)
    sizes, vectors = torch.linalg.eigh(hessian)
    exact = vectors @ ((vectors.T @ torch.tensor(inside).double()) / (sizes.abs() / 0.5 + 1))
    assert found.damp(inside, 0.5) == pytest.approx(exact.tolist())
    assert len(asked) == 2
    along_one = curved[:, 0].tolist()
    assert Spectrum.of(along_one, trace, product).values.tolist() == pytest.approx([8.5])
    assert len(asked) == 2 + 1  # these span it all


def test_losses_that_are_not_finite_make_no_spectrum_that_is_not():
    def zero(pivot: list[float]) -> list[float]:
        return [0.0] * 6

    assert Spectrum.of([0.0] * 6, 1.0, zero).damp([0.0] * 6, 1.0) == [0.0] * 6
    assert len(Spectrum.of([math.nan] * 6, 1.0, zero).values) == 0
    bad = Spectrum.of([1.0] * 6, 1.0, lambda pivot: [math.inf] * 6)
    assert bad.values.isfinite().all()


@pytest.mark.slow
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
        assert nn.functional.cross_entropy(model(x), y).item() < 1.6 * before


@pytest.mark.slow
def test_a_head_with_one_direction_a_thousand_times_as_steep_is_learned_along_the_others_too():
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
    newton = after(160, lr="auto", perturbations=(0, 8), cost_shares=(0.01,))
    assert newton < 0.1 * start
    plain = after(160, lr="auto", perturbations=(0, 8), cost_shares=(0.1,))  # too dear to be solved
    assert plain > 0.5 * start


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_newton_steps_are_counted_continue_from_a_state_and_replay_to_the_bit(evaluation):
    model, optimizer, _ = newton_run(20, evaluation=evaluation)
    start, other, loss = newton_run(0, evaluation=evaluation)
    copied = copy.deepcopy(start)
    for number in range(20):
        if number == 5:
            other.load_state_dict(copy.deepcopy(other.state_dict()))
        other.step(loss)
        report = other.last_step
        moved = 2 * 2 if report.gradients[0] else 0  # on both sides, in its first turns
        evaluations = len(report.losses) - 1 - moved
        assert report.forwards == pytest.approx(1 + moved + 0.01 * evaluations)
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
        _, optimizer, _ = newton_run(1, perturbations=None, cost_shares=(share,))
        assert optimizer.param_groups[1]["perturbations"] == count
        assert len(optimizer.last_step.seeds[1]) == count


@pytest.mark.parametrize("bad", [3, 17, 20])  # of a direction, at a pivot, beside it
def test_a_loss_that_is_not_finite_skips_a_newton_step(bad):
    _, optimizer, loss = newton_run(3)
    before = copy.deepcopy(optimizer.auto)
    calls = iter(range(10**6))
    with pytest.warns(UserWarning, match="not finite"):
        # as a number, for which every evaluation calls the closure
        optimizer.step(lambda: (math.nan if next(calls) == bad else 1.0) * loss().item())
    assert optimizer.last_step.skipped
    assert optimizer.auto == replace(before, lost_steps=1)  # which counts it, and learns nothing
    assert optimizer.step(loss) < math.inf
    assert optimizer.auto.lost_steps == 0
    assert not optimizer.last_step.skipped


def test_weight_decay_or_many_directions_leave_the_last_block_to_gradient_steps():
    """A Newton step's rate is an inverse curvature, by which weights would decay."""
    for settings in ({"weight_decay": 0.1}, {"perturbations": (0, 33), "cost_shares": (1e-4,)}):
        _, optimizer, _ = newton_run(2, **settings)
        assert not optimizer.auto.blocks[1].takes_newton_steps
    assert newton_run(2)[1].auto.blocks[1].takes_newton_steps


def test_bfloat16_takes_newton_steps_too():
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

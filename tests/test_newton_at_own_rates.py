"""Newton steps at rates that are set: `SPZO(newton=True)`, and the local steps of a federation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from auto_lr_toys import newton_run
from federated_toys import ToyTask, toy, toy_data
from first_steps_toys import resolve
from found_rates_toys import FEDERATION, clients_of, federate

from fedspzo import SPZO, split
from fedspzo.blocks.cost_shares import measure
from fedspzo.federated import Client, OptimizerConfig, Plan, run
from fedspzo.federated.journal.reader import JournalReader
from fedspzo.journal.replica import Replica

NEWTON = OptimizerConfig(lr=(1e-3, 1.0), perturbations=(1, 8), newton=True)


@pytest.mark.parametrize(("lr", "curve"), [(1e-4, 1.0), (1e-1, 400.0), (10.0, 400.0)])
def test_a_step_is_plain_where_flat_and_a_quarter_of_newtons_where_steep(lr: float, curve: float):
    """Of a parabola in one weight, which is 1 at first."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1, bias=False))
    weight = model[1].weight
    with torch.no_grad():
        weight.fill_(1.0)
    x = torch.ones(1, 1)
    blocks = split(model, at=-1, example={"input": x})
    optimizer = SPZO(blocks, lr=(1e-9, lr), perturbations=(0, 1), newton=True, eps=1e-3)
    optimizer.step(lambda: 0.5 * curve * model(x).square().mean())
    done = optimizer.last_step
    with torch.no_grad():
        slope = curve * model[0](x).item() ** 2  # the gradient at 1, and the curvature
    (gradient,), (followed,), (added,) = done.gradients[1], done.followed[1], done.coefficients[1]
    curvature = slope * (gradient / slope) ** 2  # along the direction, which is gradient / slope
    assert followed == pytest.approx(gradient / (curvature * lr / 0.25 + 1), rel=2e-2)
    assert added == pytest.approx(-lr * followed)
    assert 0.74 < weight.item() < 1  # at most a quarter of the way, however high the rate


def test_a_rate_of_0_moves_nothing_as_the_first_of_a_warm_up_is():
    model, optimizer, loss = newton_run(0, lr=(1e-3, 0.1), newton=True)
    before = [weight.clone() for weight in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(loss)
    assert optimizer.last_step.gradients[1]
    assert set(optimizer.last_step.coefficients[1]) == {0.0}
    for weight, kept in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(weight, kept, rtol=1e-5, atol=1e-6)


def test_its_evaluations_are_counted_and_a_state_keeps_it():
    _, optimizer, loss = newton_run(0, lr=(1e-3, 0.1), newton=True)
    optimizer.step(loss)
    assert optimizer.last_step.forwards == pytest.approx(1 + 2 + 0.01 * (16 + 2 * 9))
    _, other, _ = newton_run(0, lr=(1e-3, 0.1))
    other.load_state_dict(optimizer.state_dict())
    assert other.newton is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "balanced"}, "newton is True, but estimator is 'balanced'"),
        ({"lr": 1e-3, "privacy": object()}, "newton is True, but curvatures are not private"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        newton_run(0, **{"lr": 1e-3, **settings}, newton=True)


def test_a_config_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="newton is True, but estimator is 'mezo'"):
        OptimizerConfig(estimator="mezo", newton=True)
    with pytest.raises(TypeError, match="newton is 'yes'; give true or false"):
        OptimizerConfig(newton="yes")  # type: ignore[arg-type]


def test_a_client_reports_what_its_steps_followed():
    """So that the journal's terms add up to the steps, as -lr w / P times what is reported."""
    replica = Replica(toy())
    client = Client(0, replica, toy_data([6])[0], ToyTask())
    plan = Plan(
        round=0,
        client=0,
        run_seed=3,
        digest=replica.digest(),
        train=True,
        local_steps=1,
        batch_size=4,
        seeds="per-client",
        optimizer=resolve(NEWTON, [client], batch_size=4),
        updates=(),
    )
    assert Plan.decode(plan.encode()).optimizer.newton is True
    reported = client.handle(plan).gradients.values[0]
    done = client._optimizer.last_step
    assert reported.tolist() == [g for block in done.followed for g in block]
    assert done.followed[0] == done.gradients[0]
    assert math.hypot(*done.followed[1]) < math.hypot(*done.gradients[1])


def test_found_rates_take_newton_steps_where_they_are_cheap(monkeypatch: pytest.MonkeyPatch):
    clients = clients_of([5, 5])
    found = {}
    for share in (0.01, 0.5):

        def measured(replay, blocks, evaluate, *others, share=share):
            measure(replay, blocks, evaluate, *others)
            return (share,)

        monkeypatch.setattr("fedspzo.optim.closure_checks.measure", measured)
        for counts in (None, (1, 8), (1, 2), (1, 33)):
            settings = OptimizerConfig(lr="auto", perturbations=counts)
            used = resolve(settings, clients, batch_size=4)
            found[share, counts] = used.newton, used.perturbations[-1]
    assert found == {
        (0.01, None): (True, 24),
        (0.01, (1, 8)): (True, 8),
        (0.01, (1, 2)): (False, 2),
        (0.01, (1, 33)): (False, 33),
        (0.5, None): (False, 1),
        (0.5, (1, 8)): (False, 8),
        (0.5, (1, 2)): (False, 2),
        (0.5, (1, 33)): (False, 33),
    }


@pytest.mark.slow
def test_a_run_that_is_cut_short_goes_on_to_the_same_bits(tmp_path: Path):
    auto = OptimizerConfig(lr="auto", perturbations=(1, 8), newton=True)
    whole = federate(tmp_path / "whole", auto)
    with pytest.raises(KeyboardInterrupt):
        federate(tmp_path / "cut", auto, stop_after=2)
    header = JournalReader(tmp_path / "cut").header
    assert header["run"]["auto"]["blocks"][1]["smoothed_eigenvalue"] > 0
    again = federate(tmp_path / "cut", auto)
    assert again.final.digest == whole.final.digest
    assert [r.lr for r in again.rounds] == [r.lr for r in whole.rounds]


@pytest.mark.slow
def test_a_federation_learns_a_badly_conditioned_head_several_times_faster():
    """Of eight rounds: with Newton steps its loss falls at least twice as far."""
    data = toy_data([40, 40, 40, 40])
    data = [[(x + 3.0, y) for x, y in own] for own in data]  # a mean far from 0: a steep bias

    def fall(*, newton: bool) -> float:
        settings = OptimizerConfig(lr="auto", perturbations=(0, 16), newton=newton)
        federation = replace(FEDERATION, rounds=8, local_steps=5, batch_size=16)
        result = run(toy(), ToyTask(), data, federation, settings)
        losses = [done.loss for done in result.rounds if done.loss is not None]
        return losses[0] - losses[-1]

    assert fall(newton=True) > 2 * fall(newton=False) > 0

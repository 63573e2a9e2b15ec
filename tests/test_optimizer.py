"""SPZO is an optimizer of torch: losses fall, schedulers, weight decay, its state, its closure."""

from __future__ import annotations

import copy
import json
import threading
import warnings

import pytest
import torch
from spzo_toys import (
    IDS,
    THREE,
    built,
    close,
    every_estimator,
    llama,
    loss_of,
    replayed,
    same,
    weights,
)
from torch import Tensor

from fedspzo.blocks.cut import split
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "settings"),
    [
        (2e-3, {"perturbations": (1, 2, 4)}),
        (4e-3, {"estimator": "balanced", "sides": "one"}),
        (4e-3, {"estimator": "balanced", "sides": "two"}),
        (4e-3, {"estimator": "mezo", "perturbations": 3}),
    ],
)
def test_the_loss_falls(lr, settings):
    model = llama()
    optimizer = built(model, lr, **settings)
    losses = [optimizer.step(loss_of(model)) for _ in range(80)]
    assert isinstance(losses[0], float)
    assert sum(losses[-10:]) / 10 < losses[0] - 0.2


@pytest.mark.slow
def test_the_loss_falls_in_bfloat16():
    model = llama(torch.bfloat16)
    optimizer = SPZO(split(model, THREE), 4e-3, perturbations=(1, 2, 4))
    losses = [optimizer.step(loss_of(model)) for _ in range(60)]
    assert sum(losses[-10:]) / 10 < losses[0] - 0.2


def test_steps_work_outside_the_main_thread():
    model = llama()
    optimizer = SPZO(split(model, THREE))
    thread = threading.Thread(target=optimizer.step, args=(loss_of(model),))
    thread.start()
    thread.join()
    assert optimizer.steps == 1


def test_dropout_is_off_inside_a_step_and_modes_are_put_back():
    model = llama().train()
    model.model.layers[2].eval()
    modes = [module.training for module in model.modules()]
    seen: set[bool] = set()

    def loss() -> Tensor:
        seen.update(module.training for module in model.modules())
        return loss_of(model)()

    rng = torch.get_rng_state()
    SPZO(split(model, THREE)).step(loss)
    assert seen == {False}
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)  # nothing is drawn from torch's generator


@pytest.mark.slow
@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_goes_on_from_a_state_dict_bit_for_bit(settings, dtype):
    model = llama(dtype)
    optimizer = built(model, 1e-2, seed=11, **settings)
    for _ in range(2):
        optimizer.step(loss_of(model))
    state = json.loads(json.dumps(optimizer.state_dict()))  # plain values
    twin = copy.deepcopy(model)
    resumed = built(twin, 5.0, seed=1, estimator=settings["estimator"])
    resumed.load_state_dict(state)
    for _ in range(2):
        assert resumed.step(loss_of(twin)) == optimizer.step(loss_of(model))
        assert resumed.last_step == optimizer.last_step
    assert same(twin, weights(model))
    assert resumed.forwards == optimizer.forwards


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_resumed_run_does_not_look_again_why_all_losses_were_equal(evaluation):
    model = llama()
    optimizer = built(model, 1e-2, evaluation=evaluation)
    with pytest.warns(UserWarning, match=r"losses of step 0 are 0"):
        optimizer.step(lambda: 0.0 * loss_of(model)())
    twin = copy.deepcopy(model)
    resumed = built(twin, 1e-2, evaluation=evaluation)
    resumed.load_state_dict(json.loads(json.dumps(optimizer.state_dict())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.step(lambda: 0.0 * loss_of(twin)())
    optimizer.step(lambda: 0.0 * loss_of(model)())
    assert same(twin, weights(model))
    assert resumed.forwards == optimizer.forwards


def test_a_state_that_does_not_say_what_was_warned_of_is_loaded():
    optimizer = built(llama(), 1e-2)
    state = optimizer.state_dict()
    del state["spzo"]["told_of_equal_losses"]
    model = llama()
    resumed = built(model, 1e-2)
    resumed.load_state_dict(state)
    with pytest.warns(UserWarning, match=r"losses of step 0 are 0"):
        resumed.step(lambda: 0.0 * loss_of(model)())


def test_a_foreign_state_dict_is_refused():
    optimizer = SPZO(split(llama(), THREE))
    with pytest.raises(ValueError, match="not what SPZO"):
        optimizer.load_state_dict(torch.optim.SGD(llama().parameters()).state_dict())
    with pytest.raises(ValueError, match="split at the same layer"):
        optimizer.load_state_dict(SPZO(split(llama(), 1)).state_dict())
    coupled = SPZO(split(llama(), at=-1), estimator="coupled")
    with pytest.raises(ValueError, match="estimator 'coupled'; build SPZO with it"):
        optimizer.load_state_dict(coupled.state_dict())


def test_learning_rate_schedulers_scale_the_updates():
    model = llama()
    optimizer = SPZO(split(model, THREE), 1e-2, perturbations=(1, 2, 4))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for step in range(3):
        optimizer.step(loss_of(model))
        report, rate = optimizer.last_step, 1e-2 / 2**step
        for gradients, added in zip(report.gradients, report.coefficients, strict=True):
            # lr_scale is P_b / P1 = 1, 2, 4; the means are over as many
            assert added == pytest.approx([-rate * g for g in gradients])
        scheduler.step()
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = weights(model)
    optimizer.step(loss_of(model))
    warmup.step()
    assert close(model, before)


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_weight_decay_is_decoupled_and_comes_before_the_update(evaluation):
    model = llama()
    optimizer = SPZO(
        split(model, THREE), (1e-2, 2e-2, 4e-2), weight_decay=0.5, evaluation=evaluation
    )
    before = weights(model)
    optimizer.step(loss_of(model))
    factors = (1 - 5e-3, 1 - 1e-2, 1 - 2e-2)
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        for name in group["param_names"]:
            before[name].mul_(factor)
    expected = replayed(optimizer, before)
    assert same(model, expected) if evaluation == "layerwise" else close(model, expected)


def test_a_closure_may_average_the_losses_of_several_batches():
    whole, parts = llama(), llama()

    def averaged() -> Tensor:
        losses = [parts(input_ids=ids, labels=ids).loss for ids in IDS.split(1)]
        return torch.stack(losses).mean()

    one, two = SPZO(split(whole, THREE), 1e-2), SPZO(split(parts, THREE), 1e-2)
    one.step(loss_of(whole))
    two.step(averaged)
    assert two.last_step.losses == pytest.approx(one.last_step.losses, rel=1e-5)
    assert two.cost_shares == pytest.approx(one.cost_shares)


def test_the_closure_is_required_and_returns_a_scalar():
    model = llama()
    optimizer = SPZO(split(model, THREE))
    with pytest.raises(
        ValueError, match=r"closure is None.*step\(lambda: model\(\*\*batch\).loss\)"
    ):
        optimizer.step()
    with pytest.raises(ValueError, match=r"loss of shape \(2, 12, 32\)"):
        optimizer.step(lambda: model(input_ids=IDS).logits)
    with pytest.raises(TypeError, match="closure returned a NoneType"):
        optimizer.step(lambda: None)
    assert isinstance(optimizer.step(lambda: loss_of(model)().item()), float)  # a float will do

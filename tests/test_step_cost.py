"""What a step costs: the forward passes it counts, the layers it runs, its passes over weights."""

from __future__ import annotations

import math

import pytest
import torch
from spzo_toys import THREE, llama, loss_of
from torch import Tensor, nn

import fedspzo_kernels
from fedspzo.blocks.cut import split
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


def test_costs_perturbations_and_learning_rates_come_from_the_first_step():
    model = llama(layers=8)
    optimizer = SPZO(split(model, at=(6, "head")), lr=1e-3)
    assert optimizer.cost_shares is None
    optimizer.step(loss_of(model))
    layers, head = optimizer.cost_shares
    assert 2 / 8 < layers < 3 / 8  # 2 of 8 layers and the head
    assert head < layers / 4
    counts = [group["perturbations"] for group in optimizer.param_groups]
    assert counts == [3, round(3 * layers**-0.5), round(3 * head**-0.5)]
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert scales == [count / 3 for count in counts]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3] * 3
    report = optimizer.last_step
    p1, p2, p3 = counts
    assert report.forwards == pytest.approx(1 + p1 + p2 * layers + p3 * head)
    assert optimizer.forwards == pytest.approx(report.forwards + 1 + layers + head)
    for gradients, added in zip(report.gradients, report.coefficients, strict=True):
        # by the rule every direction counts alike
        assert added == pytest.approx([-1e-3 * g / 3 for g in gradients])
    optimizer.step(loss_of(model))
    assert optimizer.forwards == pytest.approx(2 * report.forwards + 1 + layers + head)


def test_cost_p2_and_learning_rate_of_balanced_come_from_the_first_step():
    model = llama(layers=8)
    optimizer = SPZO(split(model, 6), lr=1e-3, estimator="balanced")
    assert optimizer.cost_shares is None
    optimizer.step(loss_of(model))
    # a layer's matmuls, q k v o of 16 x (16 + 8 + 8 + 16), attention, and 3 x 16 x 24, next to
    # the head's 16 x 32: block 2 is 2 of 8 layers and the head
    (share,) = optimizer.cost_shares
    assert 2 / 8 < share < 3 / 8
    p2 = optimizer.param_groups[1]["perturbations"]
    assert p2 == 2 * round((1 - share) / share / 2)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1, p2]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    report = optimizer.last_step
    assert report.forwards == pytest.approx(2 + p2 * share)
    # measured at theta, where this estimator never is: so its first evaluation is made twice
    assert optimizer.forwards == pytest.approx(report.forwards + 1 + share + 1)
    (g1,), (c1,) = report.gradients[0], report.coefficients[0]
    assert c1 == pytest.approx(-1e-3 * g1)
    assert report.coefficients[1] == pytest.approx([-1e-3 * g for g in report.gradients[1]])
    optimizer.step(loss_of(model))
    assert optimizer.forwards == pytest.approx(2 * report.forwards + 1 + share + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "forwards", "checks"),
    [
        ({"perturbations": (3, 6)}, 1 + 3 + 6 / 4, 1 + 1 / 4),
        ({"perturbations": (0, 6)}, 1 + 6 / 4, 1 + 1 / 4),
        ({"perturbations": (3, 0)}, 1 + 3, 1 + 1 / 4),
        ({"perturbations": (3, 6), "sides": "two"}, 1 + 2 * (3 + 6 / 4), 1 + 1 / 4),
        ({"perturbations": (1, 6), "estimator": "balanced"}, 2 + 6 / 4, 2 + 1 / 4),
        (
            {"perturbations": (1, 6), "estimator": "balanced", "sides": "two"},
            2 * 3 / 4 + 2 * 6 / 4,
            2 + 1 / 4,
        ),
        ({"perturbations": (1, 6), "estimator": "coupled"}, 2 * 3 / 4 + 2 * 6 / 4, 2 + 1 / 4),
        ({"perturbations": (2, 6), "estimator": "balanced"}, 2 * (2 + 6 / 4), 2 + 1 / 4),
        ({"perturbations": 3, "estimator": "mezo"}, 6, 1),
        ({"perturbations": 3, "estimator": "mezo", "sides": "one"}, 4, 1),
    ],
)
def test_a_step_takes_as_many_forwards_as_the_table_says(settings, forwards, checks):
    """And the first step those of its checks: at theta in full, from the cut, and a repetition."""
    model, calls = llama(), []
    optimizer = SPZO(split(model, at=-1), cost_shares=(1 / 4,), **settings)

    def loss() -> Tensor:
        calls.append(1)
        return loss_of(model)()

    optimizer.step(loss)
    report = optimizer.last_step
    assert report.forwards == pytest.approx(forwards)
    assert optimizer.forwards == pytest.approx(forwards + checks)
    assert len(calls) == len(report.losses) + math.ceil(checks)
    calls.clear()
    optimizer.step(loss)
    assert optimizer.forwards == pytest.approx(2 * forwards + checks)
    assert len(calls) == len(report.losses)


def test_the_measurement_counts_what_it_replays_whatever_that_costs():
    """Of a model without matrices no operation is counted, and a replay costs as much as a pass."""
    shifts = nn.Sequential(*[nn.LayerNorm(4) for _ in range(3)])
    optimizer = SPZO(split(shifts, 1), perturbations=(1, 1))
    optimizer.step(lambda: shifts(torch.arange(8.0).reshape(2, 4)).square().mean())
    assert optimizer.cost_shares == (1.0,)
    assert optimizer.forwards == optimizer.last_step.forwards + 2 == 5


def test_an_anchored_step_runs_only_the_layers_it_counts():
    """Layers before a block's cut run for theta and for what is before it, and never for it."""
    model = llama()
    optimizer = SPZO(split(model, at=(2, 3, "head")), perturbations=(1, 2, 3, 4))
    optimizer.step(loss_of(model))  # measures
    ran = dict.fromkeys((0, 2, 3, "head"), 0)

    def count(place):
        def hook(*_):
            ran[place] += 1

        return hook

    for place in (0, 2, 3):
        model.model.layers[place].mlp.register_forward_hook(count(place))
    model.lm_head.register_forward_hook(count("head"))
    assert optimizer.step(loss_of(model)) == optimizer.last_step.losses[0]
    assert ran == {0: 1 + 1, 2: 1 + 1 + 2, 3: 1 + 1 + 2 + 3, "head": 1 + 1 + 2 + 3 + 4}


def test_an_in_place_step_takes_few_passes_over_the_weights(monkeypatch):
    """Turns and restores are fused with what follows; block 1's restore with the update."""
    calls: list[tuple[int, int]] = []
    plain = fedspzo_kernels.Perturber.add_

    def counted(perturber, seeds, coeffs, **kwargs):
        calls.append((len(perturber.tensors), len(seeds)))
        plain(perturber, seeds, coeffs, **kwargs)

    monkeypatch.setattr(fedspzo_kernels.Perturber, "add_", counted)
    model = llama()
    blocks = split(model, THREE)
    optimizer = SPZO(blocks, perturbations=(2, 3, 4), cost_shares=(0.5, 0.25))
    optimizer.step(loss_of(model))
    first, second, third = (len(group) for group in blocks.groups)
    # + eps z, on to the next z; then back and the update of as many terms, in one for block 1
    assert [terms for size, terms in calls if size == first] == [1, 2, 2]
    assert [terms for size, terms in calls if size == second] == [1, 2, 2, 1, 3]
    assert [terms for size, terms in calls if size == third] == [1, 2, 2, 2, 1, 4]
    calls.clear()
    blocks = split(model, at=-1)
    optimizer = SPZO(blocks, estimator="balanced", perturbations=(1, 4), cost_shares=(0.25,))
    optimizer.step(loss_of(model))
    first, second = (len(group) for group in blocks.groups)
    assert [terms for size, terms in calls if size == first] == [1, 1, 1]
    # on each side: + eps z, on to the next z, back; the last way back is the update's, 4 terms
    assert [terms for size, terms in calls if size == second] == [1, 2, 1, 1, 2, 4]
    calls.clear()
    SPZO(model.eval().named_parameters()).step(loss_of(model))
    assert [terms for _, terms in calls] == [1, 1, 1]


def test_a_step_keeps_no_key_value_caches():
    """A decoder would keep every layer's keys and values for a generation that does not follow."""
    model = llama().eval()
    assert model.config.use_cache
    ids = torch.arange(12).view(2, 6)
    caches = []

    def loss() -> Tensor:
        output = model(input_ids=ids, labels=ids)
        caches.append(output.past_key_values)
        return output.loss

    with torch.no_grad():
        alone = loss().item()
    assert caches.pop() is not None
    optimizer = SPZO(split(model, THREE))
    assert optimizer.step(loss) == alone
    assert set(caches) == {None}
    assert model.config.use_cache

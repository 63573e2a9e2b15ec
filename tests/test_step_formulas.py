"""A step adds the update of its estimator's formula, and nothing but what it reports."""

from __future__ import annotations

import copy

import pytest
import torch
from spzo_toys import built, close, every_estimator, llama, loss_of, replayed, same, weights
from torch import Tensor, nn

from fedspzo.estimators import find
from fedspzo.estimators.two_blocks import TwoBlocks
from fedspzo.optim.spzo import SPZO
from fedspzo_kernels import noise, parameter_key

pytestmark = pytest.mark.usefixtures("one_thread")


def mezo_by_hand(optimizer, loss, counts, eps):
    blocks, gradients = len(counts), [[] for _ in counts]
    for d in range(counts[0]):
        if optimizer.sides == "two":
            difference = (loss(*[(d, 1)] * blocks) - loss(*[(d, -1)] * blocks)) / 2
        else:
            difference = loss(*[(d, 1)] * blocks) - loss(*[(0, 0)] * blocks)
        for block, e in zip(gradients, eps, strict=True):
            block.append(difference / e)
    return gradients


def anchored_by_hand(optimizer, loss, counts, eps):
    gradients = [[] for _ in counts]
    for block, (count, e) in enumerate(zip(counts, eps, strict=True)):
        for d in range(count):
            up, down = (
                [(d, s) if b == block else (0, 0) for b in range(len(counts))] for s in (1, -1)
            )
            if optimizer.sides == "two":
                difference = (loss(*up) - loss(*down)) / 2
            else:
                difference = loss(*up) - loss(*[(0, 0)] * len(counts))
            gradients[block].append(difference / e)
    return gradients


def two_blocks_by_hand(optimizer, loss, counts, eps):
    p1, p2 = counts
    name, sides, here = optimizer.estimator, optimizer.sides, (0, 0)
    g1, g2 = [], []
    for a in range(p1):
        ps = range(a * p2, (a + 1) * p2)
        s = {p: 1 if p % 2 == 0 else -1 for p in ps}
        if name == "balanced" and sides == "one":
            g1.append((loss((a, 1), here) - loss((a, -1), here)) / (2 * eps[0]))
            g2 += [(loss((a, s[p]), (p, 1)) - loss((a, s[p]), here)) / eps[1] for p in ps]
        elif name == "balanced":
            up, down = ({p: loss((a, s[p]), (p, t)) for p in ps} for t in (1, -1))
            side = {
                t: [up[p] for p in ps if s[p] == t] + [down[p] for p in ps if s[p] == t]
                for t in (1, -1)
            }
            g1.append((sum(side[1]) / len(side[1]) - sum(side[-1]) / len(side[-1])) / (2 * eps[0]))
            g2 += [(up[p] - down[p]) / (2 * eps[1]) for p in ps]
        else:
            d = [loss((a, 1), (p, 1)) - loss((a, -1), (p, -1)) for p in ps]
            g1.append(sum(d) / len(d) / (2 * eps[0]))
            g2 += [x / (2 * eps[1]) for x in d]
    return g1, g2


def by_hand(model: nn.Module, optimizer: SPZO, lr: tuple[float, ...]) -> dict[str, Tensor]:
    """The update, from the table and the noise alone: full forwards on a clean copy."""
    clean = weights(model)
    named = [list(zip(g["param_names"], g["params"], strict=True)) for g in optimizer.param_groups]
    seeds = optimizer.last_step.seeds
    z = [
        [
            {n: noise(p.numel(), parameter_key(n), s).reshape(p.shape) for n, p in group}
            for s in block
        ]
        for group, block in zip(named, seeds, strict=True)
    ]
    eps = [g["eps"] for g in optimizer.param_groups]

    @torch.no_grad()
    def loss(*offsets: tuple[int, int]) -> float:
        for group, block, e, (d, s) in zip(named, z, eps, offsets, strict=True):
            for n, p in group:
                if s:
                    p.copy_(clean[n] + s * e * block[d][n])
        value = loss_of(model)().item()
        for name, p in model.named_parameters():
            p.copy_(clean[name])
        return value

    formula = {"anchored": anchored_by_hand, "mezo": mezo_by_hand}.get(
        optimizer.estimator, two_blocks_by_hand
    )
    gradients = formula(optimizer, loss, [g["perturbations"] for g in optimizer.param_groups], eps)
    after = {n: v.clone() for n, v in clean.items()}
    for group, block, found, rate in zip(named, z, gradients, lr, strict=True):
        for n, _ in group:
            for g, direction in zip(found, block, strict=True):
                after[n] -= rate * g / len(found) * direction[n]
    return after


@pytest.mark.slow
@every_estimator
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_step_adds_the_update_of_the_formula(settings, evaluation):
    """Against a plain implementation: full forwards on clean copies, no capture, no in-place."""
    model = llama()
    oracle = copy.deepcopy(model).eval()
    count = 2 if issubclass(find(settings["estimator"]), TwoBlocks) else 3
    lr, eps = (1e-2, 3e-2, 2e-2)[:count], (2e-3, 1e-3, 4e-3)[:count]
    optimizer = built(model, lr, eps=eps, evaluation=evaluation, seed=3, **settings)
    optimizer.step(loss_of(model))
    reference = built(oracle, lr, eps=eps, **settings)
    reference.last_step = optimizer.last_step
    for mine, theirs in zip(reference.param_groups, optimizer.param_groups, strict=True):
        mine["perturbations"] = theirs["perturbations"]
    start = weights(oracle)
    expected = by_hand(oracle, reference, lr)
    moved = torch.cat([(expected[n] - start[n]).flatten() for n in start])
    error = torch.cat([(p - expected[n]).flatten() for n, p in model.named_parameters()])
    # a loss has 24 bits, so a projected gradient has about 1e-7 / eps of absolute error
    assert error.norm() < 1e-2 * moved.norm()


@pytest.mark.slow
@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layerwise_steps_change_weights_by_their_reported_terms_alone(settings, dtype):
    """What a server replays from the report is, to the bit, what the step did."""
    model = llama(dtype)
    optimizer = built(model, 1e-2, evaluation="layerwise", **settings)
    for _ in range(3):
        before = weights(model)
        optimizer.step(loss_of(model))
        assert same(model, replayed(optimizer, before))
        assert not same(model, before)


@pytest.mark.slow
@every_estimator
def test_in_place_steps_change_weights_by_their_reported_terms_up_to_rounding(settings):
    models = llama(), llama()
    for model, evaluation in zip(models, ("layerwise", "in_place"), strict=True):
        optimizer = built(model, 1e-4, evaluation=evaluation, **settings)
        for _ in range(2):
            before = weights(model)
            optimizer.step(loss_of(model))
            assert close(model, replayed(optimizer, before))
    assert not same(models[0], weights(models[1]))

"""SPZO: what a step does to the weights, and that nothing else is left changed."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fedspzo_kernels
from fedspzo.blocks.cut import Blocks, split
from fedspzo.optim.spzo import SPZO
from fedspzo_kernels import noise, parameter_key, perturb_

VOCAB = 32
IDS = torch.arange(24).reshape(2, 12) % VOCAB


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


THREE = (-1, "head")
"""A cut into three blocks."""


def llama(dtype: torch.dtype = torch.float32, layers: int = 4) -> nn.Module:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        attention_dropout=0.5,
    )
    return hf.LlamaForCausalLM(config).to(dtype)


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: model(input_ids=IDS, labels=IDS).loss


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def close(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Equal to the rounding of a step's in-place moves: some ulps of the weight plus eps z."""
    return all(
        torch.allclose(p, before[n], rtol=1e-6, atol=1e-8) for n, p in model.named_parameters()
    )


def replayed(optimizer: SPZO, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """`before` with the last step's reported terms added, one op a block, as a server does it."""
    report, after = optimizer.last_step, {name: value.clone() for name, value in before.items()}
    for group, seeds, coefficients in zip(
        optimizer.param_groups, report.seeds, report.coefficients, strict=True
    ):
        names = group["param_names"]
        perturb_(
            [after[name] for name in names],
            [parameter_key(name) for name in names],
            seeds,
            coefficients,
            rounding="nearest" if report.rounding_seed is None else "stochastic",
            rounding_seed=report.rounding_seed,
        )
    return after


SETTINGS = [
    {"estimator": "anchored", "sides": "one"},
    {"estimator": "anchored", "sides": "two", "perturbations": (1, 3, 2)},
    {"estimator": "anchored", "perturbations": (0, 2, 3)},
    {"estimator": "balanced", "sides": "one"},
    {"estimator": "balanced", "sides": "two"},
    {"estimator": "balanced", "perturbations": (2, 3)},
    {"estimator": "coupled"},
    {"estimator": "mezo", "perturbations": 3},
    {"estimator": "mezo", "sides": "one", "perturbations": 3},
]
every_estimator = pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values()))
)


def built(model: nn.Module, lr: float | tuple[float, ...], **settings) -> SPZO:
    """Of three blocks, by default: the untied head is one. Two for the two-block estimators."""
    at = THREE if settings.get("estimator", "anchored") in ("anchored", "mezo") else -1
    return SPZO(split(model, at), lr, **settings)


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


@every_estimator
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_step_is_the_tables_update(settings, evaluation):
    """Against a plain implementation: full forwards on clean copies, no capture, no in-place."""
    model = llama()
    oracle = copy.deepcopy(model).eval()
    count = 3 if settings["estimator"] in ("anchored", "mezo") else 2
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


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_exact_steps_change_weights_by_their_reported_terms_alone(settings, dtype):
    """What a server replays from the report is, to the bit, what the step did."""
    model = llama(dtype)
    optimizer = built(model, 1e-2, evaluation="layerwise", **settings)
    for _ in range(3):
        before = weights(model)
        optimizer.step(loss_of(model))
        assert same(model, replayed(optimizer, before))
        assert not same(model, before)


@every_estimator
def test_in_place_steps_do_the_same_to_rounding(settings):
    models = llama(), llama()
    for model, evaluation in zip(models, ("layerwise", "in_place"), strict=True):
        optimizer = built(model, 1e-4, evaluation=evaluation, **settings)
        for _ in range(2):
            before = weights(model)
            optimizer.step(loss_of(model))
            assert close(model, replayed(optimizer, before))
    assert not same(models[0], weights(models[1]))


def test_in_place_schedule_takes_few_passes(monkeypatch):
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
    SPZO(model.named_parameters()).step(loss_of(model))
    assert [terms for _, terms in calls] == [1, 1, 1]


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
    assert optimizer.forwards == pytest.approx(report.forwards + 1 + share)
    (g1,), (c1,) = report.gradients[0], report.coefficients[0]
    assert c1 == pytest.approx(-1e-3 * g1)
    assert report.coefficients[1] == pytest.approx([-1e-3 * g for g in report.gradients[1]])
    optimizer.step(loss_of(model))
    assert optimizer.forwards == pytest.approx(2 * report.forwards + 1 + share)


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        ({"perturbations": (3, 6)}, 1 + 3 + 6 / 4),
        ({"perturbations": (0, 6)}, 1 + 6 / 4),
        ({"perturbations": (3, 0)}, 1 + 3),
        ({"perturbations": (3, 6), "sides": "two"}, 1 + 2 * (3 + 6 / 4)),
        ({"perturbations": (1, 6), "estimator": "balanced"}, 2 + 6 / 4),
        (
            {"perturbations": (1, 6), "estimator": "balanced", "sides": "two"},
            2 * 3 / 4 + 2 * 6 / 4,
        ),
        ({"perturbations": (1, 6), "estimator": "coupled"}, 2 * 3 / 4 + 2 * 6 / 4),
        ({"perturbations": (2, 6), "estimator": "balanced"}, 2 * (2 + 6 / 4)),
        ({"perturbations": 3, "estimator": "mezo"}, 6),
        ({"perturbations": 3, "estimator": "mezo", "sides": "one"}, 4),
    ],
)
def test_forwards_are_the_tables(settings, forwards):
    model = llama()
    optimizer = SPZO(split(model, at=-1), cost_shares=(1 / 4,), **settings)
    optimizer.step(loss_of(model))
    assert optimizer.last_step.forwards == optimizer.forwards == pytest.approx(forwards)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "settings"),
    [
        (2e-3, {"perturbations": (2, 4, 8)}),
        (4e-3, {"estimator": "balanced", "sides": "one"}),
        (4e-3, {"estimator": "balanced", "sides": "two"}),
        (4e-3, {"estimator": "mezo", "perturbations": 3}),
    ],
)
def test_the_loss_falls(lr, settings):
    model = llama()
    optimizer = built(model, lr, **settings)
    losses = [optimizer.step(loss_of(model)) for _ in range(150)]
    assert isinstance(losses[0], float)
    assert sum(losses[-10:]) / 10 < losses[0] - 0.2


@pytest.mark.slow
def test_the_loss_falls_in_bfloat16():
    model = llama(torch.bfloat16)
    optimizer = SPZO(split(model, THREE), 2e-3, perturbations=(2, 4, 8))
    losses = [optimizer.step(loss_of(model)) for _ in range(150)]
    assert sum(losses[-10:]) / 10 < losses[0] - 0.2


class Interrupted:
    """A loss that fails at its n-th evaluation."""

    def __init__(self, model: nn.Module, n: int, error: BaseException) -> None:
        self.loss, self.left, self.error = loss_of(model), n, error

    def __call__(self) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.loss()


def state_of_modules(model: nn.Module) -> list[object]:
    return [(module.training, vars(module).get("forward")) for module in model.modules()]


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize("error", [RuntimeError("out of data"), KeyboardInterrupt()], ids=repr)
def test_an_exception_at_any_evaluation_puts_everything_back(evaluation, error):
    model = llama().train()
    model.model.layers[1].eval()
    modules = state_of_modules(model)
    handler = signal.getsignal(signal.SIGINT)
    for n in range(3 + 1 + 7):  # the first step measures with three more
        before = weights(model)
        optimizer = SPZO(split(model, THREE), 1e-2, evaluation=evaluation, perturbations=(1, 4, 2))
        with pytest.raises(type(error)):
            optimizer.step(Interrupted(model, n, error))
        assert same(model, before) if evaluation == "layerwise" else close(model, before)
        assert state_of_modules(model) == modules
        assert signal.getsignal(signal.SIGINT) is handler
        assert optimizer.steps == 0
    assert torch.is_grad_enabled()
    clean = llama()
    assert same(model, weights(clean)) == (evaluation == "layerwise")
    clean.load_state_dict(model.state_dict())  # with what the ways back in place rounded off
    clean_optimizer = SPZO(
        split(clean, THREE), 1e-2, evaluation=evaluation, perturbations=(1, 4, 2)
    )
    assert optimizer.step(loss_of(model)) == clean_optimizer.step(loss_of(clean))
    assert same(model, weights(clean))


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize("after", [False, True], ids=["before-the-op", "after-the-op"])
def test_ctrl_c_between_and_inside_the_moves_waits_until_weights_are_whole(
    monkeypatch, evaluation, after
):
    """A real SIGINT at each op in turn: the step is undone, or has been done."""
    plain = fedspzo_kernels.Perturber.add_
    counter = {"left": 0}

    def struck(*args, **kwargs):
        counter["left"] -= 1
        if not after and counter["left"] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        plain(*args, **kwargs)
        if after and counter["left"] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(fedspzo_kernels.Perturber, "add_", struck)
    model = llama()
    blocks = split(model, at=-1)
    optimizer = SPZO(blocks, 1e-2, evaluation=evaluation, perturbations=(1, 2), cost_shares=(0.5,))
    done = 0
    # + eps z, on to the next z, back for block 2; + eps z for block 1; 2 updates
    for n in range(1, 3 if evaluation == "layerwise" else 7):
        before, steps = weights(model), optimizer.steps
        counter["left"] = n
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(loss_of(model))
        counter["left"] = 0
        if optimizer.steps > steps:
            done += 1
            assert same(model, replayed(optimizer, before)) == (evaluation == "layerwise")
            assert close(model, replayed(optimizer, before))
        else:
            assert same(model, before) if evaluation == "layerwise" else close(model, before)
    # the last op of each block is its update: Ctrl-C there comes too late to undo the step
    assert done == 2


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_failing_op_puts_weights_back(monkeypatch, evaluation):
    """Also when block 1 has its update already and block 2's fails."""
    model = llama()
    plain, calls = fedspzo_kernels.Perturber.add_, []
    blocks = split(model, at=-1)
    optimizer = SPZO(blocks, 1e-2, evaluation=evaluation, perturbations=(1, 2), cost_shares=(0.5,))
    before = weights(model)

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == fail_at:
            raise MemoryError
        plain(*args, **kwargs)

    monkeypatch.setattr(fedspzo_kernels.Perturber, "add_", failing)
    # layerwise, the two updates are the only ops; a first one is taken back by arithmetic
    for fail_at in range(1, 3 if evaluation == "layerwise" else 7):
        calls.clear()
        with pytest.raises(MemoryError):
            optimizer.step(loss_of(model))
        exact = evaluation == "layerwise" and fail_at == 1
        assert same(model, before) if exact else close(model, before)
    fail_at = 0
    optimizer.step(loss_of(model))
    assert optimizer.steps == 1


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


def test_no_key_value_caches_inside_a_step():
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


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_non_finite_loss_is_skipped_counted_and_reported(evaluation, bad):
    model = llama()
    blocks = split(model, at=-1)
    optimizer = SPZO(blocks, 1e-2, evaluation=evaluation, perturbations=(1, 2), cost_shares=(0.5,))
    before, n = weights(model), iter(range(100))

    def loss() -> Tensor:
        return loss_of(model)() + (bad if next(n) == 3 else 0.0)

    with pytest.warns(UserWarning, match="step 0 was skipped.*not finite"):
        optimizer.step(loss)
    report = optimizer.last_step
    assert report.skipped
    assert report.gradients == report.coefficients == ((0.0,), (0.0, 0.0))
    assert optimizer.skipped == optimizer.steps == 1
    assert same(model, before) if evaluation == "layerwise" else close(model, before)
    n = iter([3, 0, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(loss)  # counted without another warning
    assert optimizer.skipped == 2
    n = iter(range(50, 100))
    assert math.isfinite(optimizer.step(loss))
    assert not optimizer.last_step.skipped
    assert optimizer.skipped == 2


def test_a_difference_beyond_float32_is_skipped():
    model = llama()
    optimizer = SPZO(split(model, at=-1), perturbations=(1, 2), cost_shares=(0.5,))
    n = iter(range(10))
    with pytest.warns(UserWarning, match="skipped"):
        optimizer.step(lambda: loss_of(model)() * (1e37 if next(n) else 1))
    assert optimizer.skipped == 1


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_dict_continues_bit_for_bit(settings, dtype):
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


def test_a_closure_that_averages_accumulates():
    whole, parts = llama(), llama()

    def averaged() -> Tensor:
        losses = [parts(input_ids=ids, labels=ids).loss for ids in IDS.split(1)]
        return torch.stack(losses).mean()

    one, two = SPZO(split(whole, THREE), 1e-2), SPZO(split(parts, THREE), 1e-2)
    one.step(loss_of(whole))
    two.step(averaged)
    assert two.last_step.losses == pytest.approx(one.last_step.losses, rel=1e-5)
    assert two.cost_shares == pytest.approx(one.cost_shares)


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_block_without_perturbations_keeps_its_bits(evaluation):
    """Whatever the others do: block 1 is never moved, so that in place too no bit is lost."""
    model = llama()
    optimizer = SPZO(split(model, THREE), 1e-2, evaluation=evaluation, perturbations=(0, 3, 2))
    before, untouched = weights(model), optimizer.param_groups[0]["param_names"]
    for _ in range(3):
        optimizer.step(loss_of(model))
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in untouched)
    moved = [g["param_names"][0] for g in optimizer.param_groups[1:]]
    assert not any(torch.equal(after[name], before[name]) for name in moved)
    report = optimizer.last_step
    assert (report.seeds[0], report.gradients[0], report.coefficients[0]) == ((), (), ())
    assert len(report.losses) == 1 + 3 + 2
    assert report.forwards == pytest.approx(
        1 + 3 * optimizer.cost_shares[0] + 2 * optimizer.cost_shares[1]
    )


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


def test_tied_weights_move_once():
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=4, n_head=2, n_positions=12)
    model = hf.GPT2LMHeadModel(config)
    optimizer = SPZO(split(model), 1e-2, evaluation="layerwise")
    assert len(optimizer.param_groups) == 2  # the head's only matrix is block 1's
    assert optimizer.param_groups[0]["param_names"].count("transformer.wte.weight") == 1
    before = weights(model)
    optimizer.step(loss_of(model))
    assert same(model, replayed(optimizer, before))
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


def test_a_wrong_split_is_found_in_the_first_step():
    """A parameter of block 2 that the first block uses, which registration order cannot know."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
            self.gate = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.gate(x)
            for layer in self.layers:
                x = layer(x)
            return x.square().mean()

    model, x = Gated(), torch.ones(2, 4)
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"\['gate.bias', 'gate.weight'\].*example=BATCH"):
        SPZO(split(model, THREE)).step(lambda: model(x))
    assert same(model, before)
    SPZO(split(model, example={"x": x})).step(lambda: model(x))


def test_bare_parameters_are_one_block():
    model = llama()
    for params in (model.parameters(), model.named_parameters(), [{"params": model.parameters()}]):
        optimizer = SPZO(params, 1e-2, evaluation="layerwise")
        before = weights(model)
        optimizer.step(loss_of(model))
        assert optimizer.last_step.forwards == 2
        assert not same(model, before)
    named = SPZO(model.named_parameters())
    assert named.param_groups[0]["param_names"][0] == "model.embed_tokens.weight"
    assert SPZO(model.parameters()).param_groups[0]["param_names"][:2] == ["0", "1"]


def test_bare_groups_have_options_of_their_own():
    model = llama()
    first, second = split(model, at=-1).param_groups()
    groups = [{**first, "lr": 1e-2}, {**second, "lr": 3e-2, "eps": 2e-3}]
    optimizer = SPZO(groups)  # mezo: both groups along the same directions
    optimizer.step(loss_of(model))
    report = optimizer.last_step
    assert report.seeds[0] == report.seeds[1]
    assert report.gradients[0][0] == pytest.approx(2 * report.gradients[1][0])
    assert report.coefficients[1][0] == pytest.approx(-3e-2 * report.gradients[1][0])
    optimizer = SPZO(groups, estimator="balanced")  # without layers to replay: full forwards
    optimizer.step(loss_of(model))
    assert optimizer.last_step.forwards == 2 + 2


def test_frozen_parameters_stay_and_do_not_shift_the_others():
    model = llama()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = weights(model)
    optimizer = SPZO(model.parameters(), 1e-2)
    assert optimizer.param_groups[0]["param_names"][0] == "1"
    optimizer.step(loss_of(model))
    assert torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])


def test_duplicates_are_taken_once_or_refused():
    weight = nn.Parameter(torch.ones(3))
    again = nn.Parameter(weight.detach())
    optimizer = SPZO([("a", weight), ("b", again), ("a", weight)])
    assert optimizer.param_groups[0]["param_names"] == ["a"]
    with pytest.raises(ValueError, match="'b' shares its memory or its name"):
        SPZO([{"params": [("a", weight)]}, {"params": [("b", again)]}])
    with pytest.raises(ValueError, match="'a' shares its memory or its name"):
        SPZO([("a", weight), ("a", nn.Parameter(torch.ones(3)))])


PARAMETER = nn.Parameter(torch.ones(2))
BFLOAT16 = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("params", "settings", "error", "says"),
    [
        ([], {}, ValueError, "params is empty; pass blocks.split"),
        ([nn.Parameter(torch.ones(1), requires_grad=False)], {}, ValueError, "requires_grad=True"),
        ([torch.ones(1, dtype=torch.float64, requires_grad=True)], {}, TypeError, "torch.float64"),
        (["text"], {}, TypeError, "parameter '0' is a str; pass"),
        ([PARAMETER], {"lr": 0.0}, ValueError, "lr is 0.0; pass a finite number above 0"),
        ([PARAMETER], {"lr": math.nan}, ValueError, "lr is nan; pass"),
        (
            [PARAMETER],
            {"lr": (1.0, 2.0)},
            ValueError,
            r"lr is \(1.0, 2.0\), but there are 1 blocks",
        ),
        ([PARAMETER], {"eps": -1e-3}, ValueError, "eps is -0.001; pass a finite number above 0"),
        ([PARAMETER], {"perturbations": 0}, ValueError, "perturbations is 0; pass an int of at"),
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


def test_the_measurement_counts_what_it_replays_whatever_that_costs():
    """Of a model without matrices no operation is counted, and a replay costs as much as a pass."""
    shifts = nn.Sequential(*[nn.LayerNorm(4) for _ in range(3)])
    optimizer = SPZO(split(shifts, 1), perturbations=(1, 1))
    optimizer.step(lambda: shifts(torch.arange(8.0).reshape(2, 4)).square().mean())
    assert optimizer.cost_shares == (1.0,)
    assert optimizer.forwards == optimizer.last_step.forwards + 2 == 5


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

"""A step that fails, is interrupted, or sees a loss that is not finite puts everything back."""

from __future__ import annotations

import math
import os
import signal
import warnings

import pytest
import torch
from spzo_toys import THREE, close, llama, loss_of, replayed, same, weights
from torch import Tensor, nn

import fedspzo_kernels
from fedspzo.blocks.cut import split
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        # the first three calls are at theta: the first step's two checks, and the step's own
        optimizer.step(lambda: loss_of(model)() * (1e37 if next(n) > 2 else 1))
    assert optimizer.skipped == 1

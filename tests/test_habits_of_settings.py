"""Rates, options and schedulers as users of torch give them, and statistics that stay."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from spzo_toys import THREE, close, llama, loss_of, replayed, same, weights
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fedspzo import SPZO, Blocks, split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "lr",
    [torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5), np.float64(0.5), np.array([0.5])],
    ids=lambda lr: f"{type(lr).__name__}-{getattr(lr, 'dtype', '')}-{np.ndim(lr)}",
)
def test_a_tensor_or_a_numpy_number_is_a_rate(lr):
    optimizer = SPZO(llama().parameters(), lr, eps=lr, weight_decay=np.ravel(lr)[0])
    (group,) = optimizer.param_groups
    for field in ("lr", "eps", "weight_decay"):
        assert type(group[field]) is float
        assert group[field] == 0.5


@pytest.mark.parametrize(
    "lr",
    [torch.tensor([1.0, 2.0, 4.0]), np.array([1, 2, 4]), (torch.tensor(1.0), np.float32(2), 4)],
    ids=["tensor", "array", "mixed"],
)
def test_so_is_one_a_block(lr):
    optimizer = SPZO(split(llama(), THREE), lr)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0, 4.0]
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0] * 3
    own = [{**group, "lr": lr[i]} for i, group in enumerate(split(llama(), -1).param_groups())]
    assert [group["lr"] for group in SPZO(own).param_groups] == [1.0, 2.0]


def test_a_rate_of_0_moves_nothing_and_a_schedule_may_start_there():
    model = llama()
    optimizer = SPZO(split(model, THREE), lr=0.0, evaluation="layerwise")
    before = weights(model)
    optimizer.step(loss_of(model))
    assert same(model, before)
    assert optimizer.last_step.gradients[0][0] != 0
    optimizer.param_groups[0]["lr"] = torch.tensor(1e-2)  # as some loops set it by hand
    optimizer.step(loss_of(model))
    assert not same(model, before)


def test_one_cycle_needs_its_momentum_off_and_then_sets_the_rates():
    model = llama()
    optimizer = SPZO(split(model, THREE), 1e-2)
    with pytest.raises(ValueError, match="cycle_momentum"):
        lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=4)
    scheduler = lr_scheduler.OneCycleLR(
        optimizer, max_lr=[1e-2, 2e-2, 4e-2], total_steps=4, cycle_momentum=False
    )
    rates = []
    for _ in range(4):
        optimizer.step(loss_of(model))
        rates.append(optimizer.last_step.lr[0])
        scheduler.step()
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert rates[0] < rates[1] > rates[2] > rates[3]


@pytest.mark.parametrize("schedule", ["warm-up", "cosine", "by hand"])
def test_a_scheduler_of_rates_that_auto_finds_is_a_warning_once(schedule):
    model = llama()
    optimizer = SPZO(split(model, -1), lr="auto", perturbations=(1, 4))
    made: dict[str, Callable[[], lr_scheduler.LRScheduler]] = {
        "warm-up": lambda: lr_scheduler.LambdaLR(optimizer, lambda step: step / 10),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    }
    scheduler = made[schedule]() if schedule in made else None

    def change() -> None:
        if scheduler is None:
            optimizer.param_groups[0]["lr"] = 1e-2
        else:
            scheduler.step()

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.step(loss_of(model))
            change()

    with pytest.warns(UserWarning, match=r"lr='auto' finds the rates.* Leave the scheduler out"):
        train(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(1)


def test_auto_alone_resumed_or_interrupted_warns_of_no_scheduler():
    model = llama()
    optimizer = SPZO(split(model, -1), lr="auto", perturbations=(1, 4))

    def broken() -> Tensor:
        raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(12):
            if number == 6:
                state = optimizer.state_dict()
                optimizer = SPZO(split(model, -1), lr="auto", perturbations=(1, 4))
                optimizer.load_state_dict(state)
            if number == 3:
                with pytest.raises(KeyboardInterrupt):
                    optimizer.step(broken)
            optimizer.step(loss_of(model))


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_no_decay_spares_parameters_by_name_inside_their_blocks(evaluation):
    model = llama()
    optimizer = SPZO(
        split(model, THREE),
        (1e-2, 2e-2, 4e-2),
        weight_decay=0.5,
        no_decay=("norm", "embed_tokens.weight"),
        evaluation=evaluation,
    )
    before = weights(model)
    optimizer.step(loss_of(model))
    spared = [n for group in optimizer.param_groups for n in group["param_names"] if "norm" in n]
    assert len(spared) == 2 * 4 + 1
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            if "norm" not in name and "embed_tokens" not in name:
                before[name].mul_(1 - group["lr"] * 0.5)
    expected = replayed(optimizer, before)
    assert same(model, expected) if evaluation == "layerwise" else close(model, expected)


def test_no_decay_is_a_groups_own_option_and_continues_with_the_state():
    model = llama().eval()
    first, second = split(model, -1).param_groups()
    groups = [{**first, "no_decay": ["embed"]}, second]
    optimizer = SPZO(groups, 1e-2, weight_decay=0.1, no_decay=["norm"])
    assert [group["no_decay"] for group in optimizer.param_groups] == [("embed",), ("norm",)]
    resumed = SPZO(split(model, -1).param_groups(), 1e-2)
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["no_decay"] for group in resumed.param_groups] == [("embed",), ("norm",)]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.Tanh()) for _ in range(3)
        )
        self.norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).square().mean() + self.norm.weight.sum()


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize(
    "made", [Blocks.single, lambda m: split(m, -1), nn.Module.named_parameters]
)
@pytest.mark.filterwarnings("ignore:.*came without their model")
def test_running_statistics_do_not_move_in_a_step(made, evaluation):
    model = Normed().train()
    x = torch.linspace(-1, 1, 4 * 3 * 5).reshape(4, 3, 5)
    model(x)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert buffers["layers.0.1.num_batches_tracked"] == 1
    optimizer = SPZO(made(model), 1e-2, evaluation=evaluation)

    def broken() -> Tensor:
        model(x)
        raise KeyboardInterrupt

    optimizer.step(lambda: model(x))
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(broken)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert all(module.training for module in model.modules())
    model(x)  # outside a step they move as ever
    assert model.layers[0][1].num_batches_tracked == 2

"""Losses of micro-batches, accumulated to the loss of the whole batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from spzo_toys import IDS, THREE, llama, loss_of, same, weights
from torch import Tensor

from fedspzo import SPZO, accumulate, split

pytestmark = pytest.mark.usefixtures("one_thread")

# 8 sequences with between 2 and 11 labels that count
LABELS = torch.where(torch.arange(12) < 12 - torch.arange(0, 8)[:, None] * 9 // 7, 1, 0)
BATCH = (torch.arange(96).reshape(8, 12) * 7) % 32
TARGETS = torch.where(LABELS.bool(), BATCH, -100)


def micro_batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(BATCH.split([1, 4, 3]), TARGETS.split([1, 4, 3]), strict=True))


def counts() -> list[Tensor]:
    return [(labels[:, 1:] != -100).sum() for _, labels in micro_batches()]


def test_micro_batches_give_the_whole_batchs_loss_and_gradients():
    """The mean of their means is another loss."""
    whole, parts = llama(), llama()
    one, two = SPZO(split(whole, THREE), 1e-2), SPZO(split(parts, THREE), 1e-2)
    losses = [
        lambda ids=ids, labels=labels: parts(input_ids=ids, labels=labels).loss
        for ids, labels in micro_batches()
    ]
    one.step(lambda: whole(input_ids=BATCH, labels=TARGETS).loss)
    two.step(accumulate(losses, counts()))
    assert two.last_step.losses == pytest.approx(one.last_step.losses, rel=1e-6)
    for mine, expected in zip(two.last_step.gradients, one.last_step.gradients, strict=True):
        assert mine == pytest.approx(expected, abs=5e-4)  # float32's rounding of a loss over eps
    with torch.no_grad():
        mean = torch.stack([loss() for loss in losses]).mean()
    assert abs(mean.item() - one.last_step.loss) > 1e-3


def test_the_sum_is_weighted_in_float64_and_keeps_the_losses_dtype():
    exact = accumulate([lambda: 1.0, lambda: torch.tensor(1 / 3, dtype=torch.float64)], [1, 3])()
    assert exact.dtype == torch.float64
    assert exact.item() == 0.25 * 1.0 + 0.75 * (1 / 3)
    big = 2.0**24
    single = accumulate([lambda: torch.tensor(big)] + [lambda: torch.tensor(1.0)] * 8, [1] * 9)()
    assert single.dtype == torch.float32
    assert single.item() == torch.tensor((big + 8) / 9).item()
    low = accumulate([lambda: torch.tensor(1.0, dtype=torch.bfloat16)] * 2, [1, 2])()
    assert low.dtype == torch.bfloat16
    assert accumulate([lambda: torch.tensor(3), lambda: 1], [1, 1])() == 2


def test_a_micro_batch_without_labels_is_not_evaluated():
    """Its mean is no number."""
    model = llama()
    model.eval()
    none = torch.full_like(IDS, -100)
    losses = [loss_of(model), lambda: model(input_ids=IDS, labels=none).loss]
    with torch.no_grad():
        assert math.isnan(losses[1]())
        assert accumulate(losses, [10, 0])() == losses[0]()


@pytest.mark.parametrize(
    ("closures", "given", "error", "says"),
    [
        ([lambda: 1.0], [1, 2], ValueError, "there are 1 closures and 2 weights; pass one weight"),
        ([lambda: 1.0], [-1], ValueError, r"weights\[0\] is -1.0; pass the micro-batch's number"),
        ([lambda: 1.0] * 2, [1, math.nan], ValueError, r"weights\[1\] is nan"),
        ([lambda: 1.0] * 2, [0, 0], ValueError, r"weights are \[0.0, 0.0\]; at least one"),
        ([], [], ValueError, "at least one micro-batch needs labels"),
        ([torch.tensor(1.0)], [1], TypeError, r"closures\[0\] is a Tensor; pass functions"),
    ],
)
def test_what_cannot_be_accumulated_is_named(closures, given, error, says):
    with pytest.raises(error, match=says):
        accumulate(closures, given)


def test_a_micro_batchs_losses_have_to_be_one():
    with pytest.raises(ValueError, match=r"loss of shape \(3,\); return its mean or sum"):
        accumulate([lambda: torch.ones(3)], [3])()


@pytest.fixture
def accelerators() -> Iterator[None]:
    yield
    for state in (GradientState, AcceleratorState, PartialState):
        state._reset_state()


@pytest.mark.usefixtures("accelerators")
def test_accelerates_accumulation_is_refused():
    """It skipped the step of all micro-batches but the last."""
    model = llama()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    prepared, optimizer = accelerator.prepare(model, SPZO(split(model, -1)))
    before = weights(model)
    for number in range(4):
        says = (
            r"gradient_accumulation_steps=4, .* pass all .*fedspzo.accumulate\(closures, weights\)"
        )
        last = pytest.raises(RuntimeError, match=says) if number == 3 else nullcontext()
        with accelerator.accumulate(prepared), last:
            optimizer.step(loss_of(model))
    assert same(model, before)


@pytest.mark.usefixtures("accelerators")
def test_an_accelerator_without_accumulation_is_fine():
    model = llama()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, SPZO(split(model, -1), 1e-2))
    before = weights(model)
    optimizer.step(accumulate([loss_of(prepared)] * 2, [1, 2]))
    assert not same(model, before)

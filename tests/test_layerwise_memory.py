"""Layerwise evaluation within its scratch buffer: by layer, by rows, and the bound's default."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, loss_of
from layerwise_toys import (
    LOW,
    Seen,
    Small,
    by_copies,
    loss_on,
    step_at_no_rate,
)
from memory import peak_bytes
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks, split
from fedspzo.optim.spzo import SPZO


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt-projected", "roberta", "t5-encoder"])
def test_what_does_not_fit_the_scratch_buffer_goes_by_rows(family):
    """Room for a layer's weights, 28 rows of the embedding's 48 and of the head's."""
    model = FAMILIES[family]().to(LOW)
    loss = loss_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        optimizer = step_at_no_rate(
            split(model, -1), loss, perturbations=(1, 2), scratch_bytes=28 * 32 + 128
        )
    # a head's rows are the same sums, which a BLAS may add in another order
    assert list(optimizer.last_step.losses) == pytest.approx(
        by_copies(optimizer, model, loss), rel=1e-3
    )


def test_an_embedding_is_perturbed_in_the_rows_of_the_batch_alone():
    model = nn.Sequential(nn.Embedding(512, 16), nn.Linear(16, 16)).to(LOW)
    ids = torch.tensor([[7, 8, 9, 300], [8, 7, 7, 511]])
    optimizer = SPZO(Blocks.single(model), scratch_bytes=1 << 10)
    losses = []

    def loss() -> Tensor:
        with Seen() as seen:
            value = model(ids).float().square().mean()
        assert seen.elements == [8 * 16, 16 * 16 + 16]
        losses.append(value)
        return value

    optimizer.step(loss)
    assert len(losses) == 2 + 1  # the first step makes its first evaluation twice


@pytest.mark.parametrize("dtype", [torch.float32, LOW], ids=str)
def test_peak_memory_stays_within_the_bound(dtype):
    """Beyond a step in place: no more than the scratch buffer and a part of the head's output."""
    model = Small(vocabulary=1 << 14, width=64).to(dtype)
    ids = torch.arange(8).reshape(2, 4) * 100
    weights = sum(p.nbytes for p in model.parameters())
    peaks = {}
    for evaluation, size in (("in_place", None), ("layerwise", 64 << 10), ("layerwise", 1 << 20)):
        optimizer = SPZO(
            split(model, -1), 1e-6, evaluation=evaluation, scratch_bytes=size, cost_shares=(0.5,)
        )
        loss = loss_on(model, ids)
        optimizer.step(loss)
        peaks[size] = peak_bytes(lambda o=optimizer, loss=loss: o.step(loss))
    for size in (64 << 10, 1 << 20):
        part = ids.numel() * size // 64  # tokens, times the rows of the head that fit
        extra = peaks[size] - peaks[None]
        assert size // 2 < extra <= size + part + 4096
    by_copy = SPZO(model.named_parameters(), 1e-6, evaluation="layerwise")
    with pytest.warns(UserWarning, match="came without their model"):
        by_copy.step(loss)
    assert peak_bytes(lambda: by_copy.step(loss)) > weights


class FewWords(Small):
    """Takes a few rows of the embeddings as its head, as a prompt does."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.norm(self.embed(ids)), self.embed.weight[torch.tensor([5, -3, 5])])


def test_rows_that_a_model_takes_of_a_weight_are_perturbed_alone():
    model = FewWords(vocabulary=1 << 14, width=64)
    ids = torch.arange(8).reshape(2, 4)
    losses = {}

    def loss() -> Tensor:
        return model(ids).square().mean()

    for evaluation in ("in_place", "layerwise"):
        optimizer = SPZO(Blocks.single(model), 0.0, evaluation=evaluation, sides="one")
        optimizer.step(loss)
        losses[evaluation] = optimizer.last_step.losses
    assert losses["layerwise"] == losses["in_place"]
    optimizer.scratch_bytes = 64 << 10
    assert peak_bytes(lambda: optimizer.step(loss)) < model.embed.weight.nbytes / 8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"evaluation": "exact"}, "evaluation is 'exact'; pass 'in_place' or 'layerwise'"),
        ({"scratch_bytes": 0}, "scratch_bytes is 0; pass an int of at least 1"),
    ],
)
def test_bad_settings_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        SPZO(split(Small(), -1), **settings)


def test_the_bound_is_the_largest_layers_weights_or_what_was_passed():
    wide = Small(width=1024)
    assert SPZO(split(wide, -1)).scratch_bytes == 4 * (1024 * 1024 + 1024)
    assert SPZO(Blocks.single(wide)).scratch_bytes == 4 * (1024 * 1024 + 1024)
    assert SPZO(split(Small(), -1)).scratch_bytes == 1 << 20
    assert SPZO(split(Small(), -1), scratch_bytes=5000).scratch_bytes == 5000
    model = Small()
    loss = loss_on(model, torch.arange(6).reshape(2, 3))
    with pytest.warns(UserWarning, match=r"'norm.weight' takes 128 bytes.*\(100\)"):
        step_at_no_rate(Blocks.single(model), loss, scratch_bytes=100)


def test_between_steps_nothing_holds_the_weights_but_the_model():
    """A model that is moved to another device gives its old memory up, and trains on."""
    model = Small()
    models = (model, copy.deepcopy(model))
    ids = torch.arange(8).reshape(2, 4)
    moved, other = (SPZO(split(m, -1), 1e-3, evaluation="layerwise") for m in models)

    def uses() -> list[int]:
        storages = [p.untyped_storage() for p in model.parameters()]
        return [torch._C._storage_Use_Count(storage._cdata) for storage in storages]

    before = uses()
    for number in range(4):
        if number == 2:
            for p in model.parameters():
                p.data = p.data.clone()  # as .to(device) does
        for optimizer, m in zip((moved, other), models, strict=True):
            optimizer.step(loss_on(m, ids))
        assert uses() == before
        assert moved.last_step.losses == other.last_step.losses

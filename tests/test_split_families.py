"""Every family of models: the split loss is the full loss, bit for bit."""

from __future__ import annotations

import math
import warnings

import peft
import pytest
import torch
from families import (
    FAMILIES,
    LAYERS,
    assert_split_is_exact,
    loss_of,
    names,
)

from fedspzo.blocks.cut import split
from fedspzo.blocks.parameters import storage
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_loss_equals_full_loss_bit_for_bit_at_every_cut(family, adapted):
    model = FAMILIES[family]()
    loss = loss_of(model)
    if adapted:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the made-up tokens must do for all of them
        for cut in range(1, LAYERS):
            assert_split_is_exact(split(model, cut), loss)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nested_blocks_are_replayed_bit_for_bit_from_every_cut(family, adapted):
    model = FAMILIES[family]()
    loss = loss_of(model)
    cuts: tuple[int | str, ...] = (1, 3, "head")
    if adapted:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
        cuts = (1, -1)  # what follows the stack has no adapter in some families
    blocks = split(model, cuts)
    assert blocks.starts == ((1, 3) if adapted else (1, 3, LAYERS))
    assert len(blocks.groups) == len(cuts) + 1
    assert_split_is_exact(blocks, loss)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_accepts_every_family(family, adapted):
    """The first step checks on real data what `split` saw on made-up tokens."""
    model = FAMILIES[family]()
    loss = loss_of(model)
    if adapted:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    frozen = [(p, p.clone()) for p in model.parameters() if not p.requires_grad]
    optimizer = SPZO(split(model, 2))
    assert math.isfinite(optimizer.step(loss))
    assert 0.4 < optimizer.cost_shares[0] < 0.9
    assert all(torch.equal(p, before) for p, before in frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_storage_is_in_one_block_once(family):
    model = FAMILIES[family]()
    blocks = split(model)
    placed = [storage(p) for group in blocks.groups for _, p in group]
    assert len(placed) == len(set(placed))
    assert set(placed) == {storage(p) for p in model.parameters()}
    assert blocks.starts == (len(blocks.layers),)


# families whose head has no matrix of its own: tied to the embedding, or none at all
HEADLESS = ("opt", "qwen2", "gpt2", "t5-encoder")


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_cuts_before_a_head_with_a_matrix_of_its_own(family):
    model = FAMILIES[family]()
    blocks = split(model)
    if family in HEADLESS:
        assert blocks.starts == (LAYERS - 1,)
        assert len(blocks.groups) == 2
        last = {storage(p) for p in blocks.model.get_input_embeddings().parameters()}
        assert not any(storage(p) in last for _, p in blocks.groups[1])
        assert any("norm" in name or "ln_f" in name for name in names(blocks, 2))
    else:
        assert blocks.starts == (LAYERS,)
        assert any(p.dim() > 1 for _, p in blocks.groups[1])
        inside = {p for layer in blocks.layers for p in layer.parameters()}
        assert not any(p in inside for _, p in blocks.groups[1])
    explicit = split(model, LAYERS - 1 if family in HEADLESS else "head")
    # a pooler before the output layer is block 1's by default
    hidden = {name for name in names(explicit, 2) if "pooler" in name}
    assert names(blocks, 2) == names(explicit, 2) - hidden
    assert blocks.starts == explicit.starts

"""Weights that change hands after the optimizer was built: followed, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import accelerate
import peft
import pytest
import torch
from spzo_toys import IDS, THREE, llama, loss_of, same, weights
from torch import nn

from fedspzo.blocks.cut import Blocks, split
from fedspzo.blocks.output_rows import merge_rows
from fedspzo.journal import JournalError, StepJournal
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


def assigned(model: nn.Module) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def one_module_replaced(model: nn.Module) -> None:
    model.model.layers[1].mlp.up_proj = copy.deepcopy(model.model.layers[1].mlp.up_proj)


def adapted(model: nn.Module) -> None:
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))


def cast_with_new_parameters(model: nn.Module) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "load_state_dict": (
        assigned,
        r"'model.embed_tokens.weight', .* and 35 more are in the model no",
    ),
    "resize": (
        lambda model: model.resize_token_embeddings(40),
        r"'model.embed_tokens.weight' was torch.float32 of shape \(32, 16\) .* \(40, 16\) now",
    ),
    "tie": (
        lambda model: setattr(model.lm_head, "weight", model.model.embed_tokens.weight),
        "parameter 'lm_head.weight' is in the model no longer: .* or fully_shard; finish the model",
    ),
    "module": (
        one_module_replaced,
        "parameter 'model.layers.1.mlp.up_proj.weight' is in the model no longer",
    ),
    "peft": (
        adapted,
        r"lora_A.default.weight', .* not in the optimizer: .* get_peft_model; finish",
    ),
    "unfrozen": (
        lambda model: model.model.norm.weight.requires_grad_(True),
        "parameter 'model.norm.weight' is in the model with requires_grad=True, but not in the",
    ),
    "bfloat16": (
        lambda model: model.to(torch.bfloat16),
        r"'model.embed_tokens.weight' was torch.float32 of .* is torch.bfloat16 of .* such as eps",
    ),
    "overwritten": (cast_with_new_parameters, "in the model no longer"),
    "offload": (
        lambda model: accelerate.cpu_offload(model, execution_device="cpu"),
        "'model.embed_tokens.weight' is on meta, without weights, as accelerate's cpu_offload",
    ),
    "all-frozen": (
        lambda model: model.requires_grad_(False),
        "none of the optimizer's parameters has requires_grad=True any more; unfreeze some",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1], ids=["before-a-step", "after-a-step"])
@pytest.mark.parametrize("single", [False, True], ids=["blocks", "single"])
@pytest.mark.parametrize("change", CHANGES)
def test_replaced_added_cast_or_offloaded_parameters_are_an_error_by_name(change, single, after):
    """They were trained on, unseen by the model, or silently left out."""
    changed, says = CHANGES[change]
    model = llama().eval()
    model.model.norm.weight.requires_grad_(False)
    optimizer = SPZO(Blocks.single(model) if single else split(model, THREE), 1e-2)
    for _ in range(after):
        optimizer.step(loss_of(model))
    changed(model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in held]
    with pytest.raises(ValueError, match=says):
        optimizer.step(loss_of(model))
    assert all(torch.equal(p, start) for p, start in zip(held, before, strict=True))
    assert optimizer.steps == after


def test_rows_that_were_merged_are_an_error():
    model = llama().eval()
    optimizer = SPZO(split(model, -1, rows=[3, 5]))
    merge_rows(model)
    with pytest.raises(ValueError, match=r"'lm_head.rows' is in the model no longer"):
        optimizer.step(loss_of(model))


def test_bare_parameters_that_were_cast_or_are_on_meta_are_an_error():
    model = llama().eval()
    optimizer = SPZO(model.named_parameters())
    model.half()
    with pytest.raises(ValueError, match=r"was torch.float32 of .* is torch.float16 of"):
        optimizer.step(loss_of(model))


@pytest.mark.parametrize("made", [Blocks.single, lambda m: split(m, -1), nn.Module.parameters])
def test_an_offloaded_model_is_refused(made):
    model = llama().eval()
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(
        ValueError, match="is on meta, without weights, as accelerate's cpu_offload"
    ):
        SPZO(made(model))


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize("kind", ["blocks", "single", "bare", "balanced", "auto"])
@pytest.mark.filterwarnings("ignore:.*came without their model")
def test_a_step_honours_requires_grad(kind, evaluation):
    model = llama().eval()
    params = {
        "blocks": lambda: split(model, THREE),
        "auto": lambda: split(model, THREE),
        "balanced": lambda: split(model, -1),
        "single": lambda: Blocks.single(model),
        "bare": model.named_parameters,
    }[kind]()
    settings = {"balanced": {"estimator": "balanced"}, "auto": {"lr": "auto"}}.get(kind, {})
    optimizer = SPZO(params, **{"lr": 1e-2, **settings}, evaluation=evaluation)
    optimizer.step(loss_of(model))
    frozen = ("embed_tokens", "layers.1.", "layers.3.mlp", "model.norm")
    for name, p in model.named_parameters():
        p.requires_grad_(not any(part in name for part in frozen))
    before = weights(model)
    for _ in range(3):
        optimizer.step(loss_of(model))
    after = weights(model)
    for name in after:
        kept = any(part in name for part in frozen)
        assert not kept or torch.equal(after[name], before[name]), name
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    if kind != "auto":  # there the first blocks rest at first
        assert sum(not torch.equal(after[name], before[name]) for name in after) > 20
    model.requires_grad_(True)
    for _ in range(20 if kind == "auto" else 1):
        optimizer.step(loss_of(model))
    assert not torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])


def test_freezing_leaves_the_others_noise_and_a_frozen_block_costs_nothing():
    one, other = llama(), llama()
    other.lm_head.requires_grad_(False)
    early = SPZO(split(other, -1), 1e-2, perturbations=(1, 3), cost_shares=(0.25,))
    late = SPZO(split(one, -1), 1e-2, perturbations=(1, 3), cost_shares=(0.25,))
    one.lm_head.requires_grad_(False)
    for optimizer, model in ((early, other), (late, one)):
        optimizer.step(loss_of(model))
    assert late.last_step == early.last_step
    assert same(one, weights(other))
    for p in (p for name, p in one.named_parameters() if name.startswith("model.layers.3")):
        p.requires_grad_(False)
    one.model.norm.weight.requires_grad_(False)
    late.step(loss_of(one))
    assert late.last_step.seeds[1] == ()
    assert late.last_step.forwards == 1 + 1


def test_what_was_left_out_when_the_optimizer_was_built_may_train_elsewhere():
    model = llama()
    whole = Blocks.single(model)
    part = Blocks(model, (), (whole.groups[0][:5],))
    SPZO(part).step(loss_of(model))


def test_moving_a_model_to_a_device_and_back_or_loading_values_is_no_change():
    model, donor = llama(), llama()
    optimizer = SPZO(split(model, THREE), 1e-2)
    model.to("cpu")
    model.load_state_dict({name: 1.01 * value for name, value in donor.state_dict().items()})
    optimizer.step(loss_of(model))
    assert optimizer.last_step.loss != SPZO(split(donor, THREE)).step(loss_of(donor))


def test_weights_tied_under_two_names_are_one():
    model = llama()
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach())
    optimizer = SPZO(split(model, -1), 1e-2)
    for _ in range(2):
        optimizer.step(lambda: model(input_ids=IDS, labels=IDS).loss)


def test_a_journal_refuses_steps_that_its_replay_would_take_otherwise(tmp_path):
    model = llama()
    blocks = split(model, -1)
    optimizer = SPZO(blocks, 1e-2)
    with StepJournal(tmp_path / "run.fspz", blocks, source="toy") as journal:
        optimizer.step(loss_of(model))
        journal.log(optimizer.last_step)
        model.model.norm.weight.requires_grad_(False)
        optimizer.step(loss_of(model))
        with pytest.raises(JournalError, match=r"'model.norm.weight' was frozen after the journal"):
            journal.log(optimizer.last_step)


def test_bare_parameters_that_were_replaced_are_a_warning():
    """They know no model, so nothing can name them; but no perturbation changes the loss."""
    model = llama().eval()
    optimizer = SPZO(model.named_parameters())
    optimizer.step(loss_of(model))
    assigned(model)
    with pytest.warns(UserWarning, match="parameters were replaced after the optimizer was built"):
        optimizer.step(loss_of(model))

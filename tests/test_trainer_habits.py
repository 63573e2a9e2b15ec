"""What people do with a Trainer beside its steps: checkpoints, schedules, PEFT and others."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from spzo_toys import llama, same, weights
from torch import Tensor, nn
from trainer_toys import bits, logged, loss_of, rows, trainer

from fedspzo import SPZO, split


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"spzo": {"lr": "auto"}},
        {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    ],
    ids=["plain", "auto", "accumulated"],
)
def test_it_resumes_to_the_same_bits(tmp_path, settings):
    settings = {"save_strategy": "steps", "save_steps": 3, **settings}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert bits(resumed.model) == bits(whole.model)
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "learning_rate") == logged(whole, "learning_rate")


def test_evaluation_and_the_best_model_at_the_end(tmp_path):
    made = trainer(
        tmp_path,
        eval_dataset=rows(4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        learning_rate=0.5,  # each step spoils what the one before learned
        compute_metrics=lambda p: {"mean": float(p.predictions.mean())},
    )
    made.train()
    losses = logged(made, "eval_loss")
    best = losses.index(min(losses)) + 1
    assert best < 6
    assert len(losses) == len(logged(made, "eval_mean")) == 6
    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in made.model.named_parameters())
    assert made.evaluate()["eval_loss"] == pytest.approx(min(losses))


def test_callbacks_see_each_step_and_may_stop(tmp_path):
    events = []

    class Watches(hf.TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer, **_):
            events.append(optimizer.optimizer.steps)

        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 4

    made = trainer(tmp_path, callbacks=[Watches()])
    made.train()
    assert events == [1, 2, 3, 4]
    assert made.state.global_step == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["linear", "cosine", "constant_with_warmup", "reduce_lr_on_plateau"]
)
def test_schedules_set_the_rates(tmp_path, name):
    more = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"}
    made = trainer(tmp_path, lr_scheduler_type=name, warmup_steps=2, eval_dataset=rows(2), **more)
    made.train()
    rates = logged(made, "learning_rate")
    if name == "linear":
        assert rates == pytest.approx([0, 5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3])
    used = made.optimizer.optimizer.last_step.lr
    assert used[0] == pytest.approx(rates[-1])
    assert used[1] == pytest.approx(2 * rates[-1])  # two directions, so twice block 1's rate


def test_the_rates_that_auto_finds_are_logged_and_no_schedule_changes_them(tmp_path):
    made = trainer(tmp_path, spzo={"lr": "auto"})
    made.train()
    optimizer = made.optimizer.optimizer
    assert optimizer.auto is not None
    assert len(set(logged(made, "learning_rate_block_2"))) > 1
    model = llama()
    plain = SPZO(split(model), lr="auto", seed=3)
    fresh = trainer(tmp_path, spzo={"lr": "auto"})
    batches = [fresh._prepare_inputs(batch) for batch in fresh.get_train_dataloader()]
    for batch in batches[:6]:
        plain.step(partial(loss_of, model, batch))
    assert bits(model) == bits(made.model)
    assert [g["lr"] for g in plain.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_bf16_autocast_gets_the_settings_of_coarse_losses(tmp_path):
    made = trainer(tmp_path, bf16=True, max_steps=2)
    made.train()
    optimizer = made.optimizer.optimizer
    assert [group["eps"] for group in optimizer.param_groups] == [5e-3, 5e-3]
    assert (optimizer.sides, made.model.dtype) == ("two", torch.float32)
    assert len(set(optimizer.last_step.losses)) == len(optimizer.last_step.losses)
    own = trainer(tmp_path, bf16=True, spzo={"eps": 1e-2, "sides": "one"})
    own.create_optimizer()
    assert (own.optimizer.param_groups[0]["eps"], own.optimizer.sides) == (1e-2, "one")


def test_a_bfloat16_model_trains_layerwise(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    made = trainer(tmp_path, llama(torch.bfloat16), **settings)
    made.train()
    assert made.optimizer.optimizer.evaluation == "layerwise"
    assert not same(made.model, weights(llama(torch.bfloat16)))
    resumed = trainer(tmp_path / "resumed", llama(torch.bfloat16), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert bits(resumed.model) == bits(made.model)


def adapted() -> nn.Module:
    base = llama()
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    return get_peft_model(base, config)


@pytest.mark.slow
def test_peft_adapters_train_are_saved_and_resume(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True}
    settings |= {"eval_dataset": rows(2), "eval_strategy": "steps", "eval_steps": 3}
    made = trainer(tmp_path, adapted(), at=-1, **settings)
    before = weights(made.model)
    made.train()
    moved = {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n}
    saved = load_file(tmp_path / "checkpoint-6" / "adapter_model.safetensors")
    assert len(saved) == len(moved)
    resumed = trainer(tmp_path / "resumed", adapted(), at=-1, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert bits(resumed.model) == bits(made.model)


def test_an_optimizer_of_your_own(tmp_path):
    model = llama()
    optimizer = SPZO(split(model, at=1), lr=1e-2, perturbations=(1, 2), seed=3)
    made = trainer(tmp_path, model, optimizers=(optimizer, None), spzo=None)
    made.train()
    assert made.optimizer.optimizer is optimizer
    assert optimizer.steps == 6
    like = trainer(tmp_path, at=1)
    like.train()
    assert bits(like.model) == bits(model)
    with pytest.raises(ValueError, match="closure is None"):  # as before it was trained with
        optimizer.step()


def test_an_optimizer_and_a_schedule_of_your_own(tmp_path):
    model = llama()
    optimizer = SPZO(split(model), lr=1e-2, perturbations=(1, 2))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    made = trainer(tmp_path, model, optimizers=(optimizer, schedule), spzo=None)
    made.train()
    assert logged(made, "learning_rate") == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert optimizer.steps == 6


def test_training_goes_on_after_an_error_between_a_step_and_its_end(tmp_path):
    class Fails(hf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            if state.global_step == 1:
                raise KeyError("once")

    failing = Fails()
    made = trainer(tmp_path, callbacks=[failing], max_steps=3)
    with pytest.raises(KeyError):
        made.train()
    made.remove_callback(failing)
    made.train()
    assert made.optimizer.optimizer.steps == 2 + 3


def test_a_model_that_each_run_makes_anew(tmp_path):
    def build() -> nn.Module:  # as the Trainer takes no function with arguments
        return llama()

    made = trainer(tmp_path, model_init=build)
    made.train()
    first = bits(made.model)
    made.train()
    assert bits(made.model) == first


def test_a_step_that_is_not_finite_is_skipped_and_training_goes_on(tmp_path):
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        bad = math.nan if made.state.global_step == 1 else 0.0
        return outputs.logits.square().mean() + bad

    made = trainer(tmp_path, compute_loss_func=loss, max_steps=3)
    with pytest.warns(UserWarning, match="was skipped"):
        made.train()
    assert (made.optimizer.optimizer.skipped, made.state.global_step) == (1, 3)

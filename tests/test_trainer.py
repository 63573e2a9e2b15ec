"""transformers' Trainer with SPZO's steps, feature by feature."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from families import BERT_LIKE
from peft import LoraConfig, get_peft_model
from process_toys import in_processes
from safetensors.torch import load_file
from spzo_toys import llama, same, weights
from torch import Tensor, nn
from torch.optim import SGD
from trainer_toys import arguments, in_a_group, rows

from fedspzo import SPZO, split
from fedspzo.integrations.transformers import SPZOTrainer, SPZOTrainerMixin
from fedspzo.journal import digest

FEW = {"perturbations": (1, 2)}
"""Few directions, as most tests ask for no progress."""

OF_THE_TRAINER = (
    *("spzo", "at", "optimizers", "callbacks", "eval_dataset", "train_dataset", "model_init"),
    *("compute_loss_func", "compute_metrics", "data_collator"),
)


def trainer(folder: Path, model: nn.Module | None = None, **settings: Any) -> SPZOTrainer:
    """A Trainer of the tiny LLaMA. What is no argument of the Trainer is a training argument."""
    own = {name: settings.pop(name) for name in OF_THE_TRAINER if name in settings}
    if "model_init" not in own:
        model = llama() if model is None else model
    args = arguments(folder, **settings)
    return SPZOTrainer(model, args, **{"train_dataset": rows(), "spzo": FEW, **own})


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def bits(model: nn.Module) -> str:
    return digest(model.named_parameters())


def logged(made: hf.Trainer, name: str) -> list[float]:
    return [entry[name] for entry in made.state.log_history if name in entry]


def no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "backward", fail)
    monkeypatch.setattr(Tensor, "backward", fail)


@pytest.mark.slow
def test_it_trains_without_a_backward_pass_or_a_gradient(tmp_path, monkeypatch):
    no_backward(monkeypatch)
    made = trainer(tmp_path, max_steps=40, learning_rate=3e-3, spzo=None)
    result = made.train()
    assert all(p.grad is None for p in made.model.parameters())
    losses = logged(made, "loss")
    assert len(losses) == 40
    assert sum(losses[-8:]) < sum(losses[:8]) - 0.3
    assert result.training_loss == pytest.approx(sum(losses) / 40)
    assert logged(made, "grad_norm") == []


def test_its_steps_are_those_of_a_plain_loop_to_the_bit(tmp_path):
    made = trainer(tmp_path, max_steps=4, lr_scheduler_type="constant")
    batches = [made._prepare_inputs(batch) for batch in made.get_train_dataloader()][:4]
    made.train()
    model = llama()
    optimizer = SPZO(split(model), lr=1e-2, perturbations=(1, 2), seed=3)
    losses = [optimizer.step(partial(loss_of, model, batch)) for batch in batches]
    assert bits(model) == bits(made.model)
    assert logged(made, "loss") == pytest.approx(losses, abs=1e-7)


def test_settings_follow_from_the_training_arguments(tmp_path):
    made = trainer(tmp_path, weight_decay=0.1, spzo={"estimator": "balanced", **FEW}, at=1)
    made.create_optimizer()
    optimizer = made.optimizer
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-2]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert (optimizer.seed, optimizer.sides, optimizer.estimator) == (3, "one", "balanced")
    assert not any("layers.1." in name for name in optimizer.param_groups[0]["param_names"])
    own = trainer(tmp_path, spzo={"lr": (1e-3, 2e-3), "seed": 5, "weight_decay": 0.2})
    own.create_optimizer()
    assert [group["lr"] for group in own.optimizer.param_groups] == [1e-3, 2e-3]
    assert (own.optimizer.seed, own.optimizer.param_groups[1]["weight_decay"]) == (5, 0.2)


class MeansOfBatches(hf.BertForTokenClassification):
    """A model whose loss is its own batch's mean, whatever the other micro-batches hold."""

    accepts_loss_kwargs = False


def bert() -> nn.Module:
    torch.manual_seed(0)
    return MeansOfBatches(hf.BertConfig(**BERT_LIKE, num_labels=32))


@pytest.mark.parametrize("build", [llama, bert])
def test_micro_batches_are_one_step_that_counts_every_label_alike(tmp_path, build):
    """The step of 3 micro-batches is that of one batch; a mean of their means is another loss."""
    settings = {"max_steps": 2, "lr_scheduler_type": "constant"}
    parts = trainer(tmp_path, build(), gradient_accumulation_steps=3, **settings)
    parts.train()
    whole = trainer(tmp_path, build(), per_device_train_batch_size=6, **settings)
    batches = [whole._prepare_inputs(batch) for batch in whole.get_train_dataloader()]
    whole.train()
    assert logged(parts, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-5)
    for name, weight in parts.model.named_parameters():  # the steps moved them by up to 0.1
        assert torch.allclose(weight, whole.model.get_parameter(name), atol=1e-4)
    model = build().eval()
    with torch.no_grad():
        thirds = [{k: v[i : i + 2] for k, v in batches[0].items()} for i in (0, 2, 4)]
        means = sum(model(**third).loss.item() for third in thirds) / 3
    assert abs(means - logged(parts, "loss")[0]) > 1e-4


def test_micro_batches_are_one_step_of_the_optimizer(tmp_path):
    made = trainer(tmp_path, gradient_accumulation_steps=3, num_train_epochs=2, max_steps=-1)
    made.train()  # 8 batches an epoch: steps of 3, 3 and 2
    assert made.state.global_step == made.optimizer.optimizer.steps == 6


def test_a_step_that_was_broken_off_leaves_no_micro_batches(tmp_path):
    class Stops(hf.TrainerCallback):
        def on_substep_end(self, args, state, control, **_):
            control.should_epoch_stop = state.global_step == 1

    settings = {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "max_steps": -1}
    made = trainer(tmp_path, callbacks=[Stops()], **settings)
    made.train()
    taken = []
    made._micro_batch_shares = lambda batches, _: taken.append(len(batches)) or [1.0] * len(batches)
    made.train()
    assert set(taken) == {2}


@pytest.mark.slow
def test_processes_share_a_step_as_micro_batches_do(tmp_path):
    processes = in_processes(in_a_group, tmp_path)
    settings = {"max_steps": 3, "lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    one = trainer(tmp_path, **settings)
    one.train()
    assert len({process["digest"] for process in processes}) == 1
    for process in processes:
        assert process["losses"] == pytest.approx(logged(one, "loss"), rel=1e-5)
        assert process["head"] == pytest.approx(one.model.lm_head.weight[0].tolist(), abs=1e-4)
        assert process["wrapped"] == "LlamaForCausalLM"  # not DistributedDataParallel


def test_a_loss_of_your_own(tmp_path):
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        logits = outputs.logits[:, :-1].flatten(0, 1)
        total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        return total / num_items_in_batch

    settings = {"gradient_accumulation_steps": 2, "max_steps": 3}
    own = trainer(tmp_path, compute_loss_func=loss, **settings)
    own.train()
    models = trainer(tmp_path, **settings)
    models.train()
    assert logged(own, "loss") == pytest.approx(logged(models, "loss"), rel=1e-5)


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


def test_a_plain_trainer_fails_before_it_runs_the_model(tmp_path, monkeypatch):
    no_backward(monkeypatch)
    model = llama()
    before = weights(model)
    optimizer = SPZO(split(model), lr=1e-2)
    plain = hf.Trainer(
        model, arguments(tmp_path), train_dataset=rows(), optimizers=(optimizer, None)
    )
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(RuntimeError, match=r"fedspzo\.integrations\.transformers"):
        plain.train()
    assert same(model, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha is 5.0"),
        ({"optimizers": (SGD(nn.Linear(1, 1).parameters(), lr=1), None)}, "pass optimizers="),
    ],
)
def test_what_it_cannot_follow_is_refused_by_name(tmp_path, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "value"), [("fp16", True), ("n_gpu", 2), ("is_fsdp_enabled", True)]
)
def test_machines_it_cannot_use_are_refused_by_name(tmp_path, name, value):
    """Torch has none of them here, so the arguments are set after the Trainer is built."""

    class Arguments:
        fp16, n_gpu, neftune_noise_alpha, world_size = False, 1, None, 1

    made = trainer(tmp_path)
    made.args = Arguments()
    setattr(made if name.startswith("is_") else made.args, name, value)
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        made._check_spzo_arguments()


def test_an_optimizer_of_your_own_has_to_know_of_the_other_processes(tmp_path):
    model = llama()
    made = trainer(tmp_path, model, optimizers=(SPZO(split(model), lr=1e-2), None))
    made.args = type("Arguments", (), {"world_size": 2})
    with pytest.raises(ValueError, match="process_group, but there are 2 processes"):
        made._check_spzo_arguments()


def test_the_mixin_goes_before_the_trainer():
    assert SPZOTrainer.__mro__[1:3] == (SPZOTrainerMixin, hf.Trainer)

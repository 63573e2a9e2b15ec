"""transformers' Trainer with SPZO's steps: what a step evaluates, and what is refused."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from families import BERT_LIKE
from process_toys import in_processes
from spzo_toys import llama, same, weights
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from trainer_toys import (
    FEW,
    VOCAB,
    arguments,
    bits,
    in_a_group,
    logged,
    loss_of,
    rows,
    tagger,
    trainer,
)

from fedspzo import SPZO, split
from fedspzo.integrations.transformers import SPZOTrainer, SPZOTrainerMixin


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


@pytest.mark.slow
@pytest.mark.parametrize("build", [llama, bert, tagger])
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


def mean_of_labels(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


def sum_by_all_labels(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits.flatten(0, 1)
    return F.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.slow
def test_a_loss_function_of_ones_own_may_be_a_mean_or_divide(tmp_path):
    losses = []
    for function in (mean_of_labels, sum_by_all_labels):
        settings = {"max_steps": 2, "gradient_accumulation_steps": 3}
        made = trainer(tmp_path, tagger(), compute_loss_func=function, **settings)
        made.train()
        losses.append(logged(made, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_step_whose_first_micro_batch_has_no_labels_is_taken(tmp_path):
    data = rows()
    for row in data[:2]:
        row["labels"] = torch.full((8,), -100)
    settings = {"max_steps": 1, "gradient_accumulation_steps": 2}
    settings["train_sampling_strategy"] = "sequential"
    made = trainer(tmp_path, tagger(), train_dataset=data, **settings)
    made.train()
    assert made.optimizer.optimizer.skipped == 0


def test_a_micro_batch_without_labels_does_not_count(tmp_path):
    """Of a loss that is a mean; a causal model predicts no row's first label."""
    labels = torch.full((2, 4), -100)
    few = labels.clone()
    few[:, -1] = 1
    many = torch.ones(2, 4, dtype=torch.long)
    batches = [{"labels": labels}, {"labels": few}, {"labels": many}]
    assert trainer(tmp_path, bert())._micro_batch_shares(batches, None) == [0, 0.2, 0.8]
    causal = trainer(tmp_path)
    if not hasattr(causal, "_loss_shifts_labels"):
        pytest.skip("this transformers counts the first labels too")
    causal.model_accepts_loss_kwargs = False
    assert causal._micro_batch_shares(batches, None) == [0, 0.25, 0.75]
    assert causal._micro_batch_shares(batches[:1] * 2, None) == [0.5, 0.5]


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
def test_processes_share_a_step_as_micro_batches_do(python, tmp_path):
    processes = in_processes(python, in_a_group, tmp_path)
    settings = {"max_steps": 3, "lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    one = trainer(tmp_path, **settings)
    one.train()
    assert len({process["digest"] for process in processes}) == 1
    for process in processes:
        assert process["losses"] == pytest.approx(logged(one, "loss"), rel=1e-5)
        assert process["head"] == pytest.approx(one.model.lm_head.weight[0].tolist(), abs=1e-4)
        assert process["wrapped"] == "LlamaForCausalLM"  # not DistributedDataParallel
        # a mean of means, where transformers' Trainer logs their sum
        assert process["means"] == pytest.approx([math.log(VOCAB)] * 2, abs=0.3)
    assert len({process["digest of means"] for process in processes}) == 1


@pytest.mark.slow
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

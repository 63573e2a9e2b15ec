"""TRL's SFTTrainer with SPZO's steps, by the mixin."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from fedspzo.integrations.transformers import SPZOTrainerMixin
from fedspzo.journal import digest

pytestmark = pytest.mark.slow

SOURCE = str(files("fedspzo.demo") / "model")
ROWS = [
    {"prompt": f"{text} It was", "completion": word}
    for text, word in [("A fine day.", " great"), ("What a bore, and so long.", " terrible")] * 8
]


class SPZOSFTTrainer(SPZOTrainerMixin, SFTTrainer):
    pass


def trainer(folder: Path, cls: type = SPZOSFTTrainer, **settings: Any) -> Any:
    own = {name: settings.pop(name) for name in ("peft_config", "optimizers") if name in settings}
    args = SFTConfig(
        str(folder),
        **{
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "disable_tqdm": True,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "logging_steps": 1,
            **settings,
        },
    )
    spzo = {"spzo": {"perturbations": (1, 2)}} if issubclass(cls, SPZOTrainerMixin) else {}
    return cls(
        AutoModelForCausalLM.from_pretrained(SOURCE),
        args,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:4]),
        processing_class=AutoTokenizer.from_pretrained(SOURCE),
        **spzo,
        **own,
    )


def logged(made: Any, name: str) -> list[float]:
    return [entry[name] for entry in made.state.log_history if name in entry]


def test_it_fine_tunes_without_gradients(tmp_path):
    made = trainer(tmp_path, max_steps=12)
    before = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] < before - 0.2
    assert all(p.grad is None for p in made.model.parameters())


def test_its_metrics_count_each_step_once_as_in_training(tmp_path):
    """TRL keeps metrics of every loss; a step evaluates several, at perturbed weights too."""
    made = trainer(tmp_path, gradient_accumulation_steps=2)
    made.train()
    tokens = sum(len(row["input_ids"]) for row in made.train_dataset)
    assert logged(made, "num_tokens")[-1] == tokens  # 4 steps of 2 batches of 2 rows: an epoch
    assert len(logged(made, "entropy")) == 4
    assert all(not kept for kept in made._metrics.values())
    evaluated = made.evaluate()
    assert evaluated["eval_entropy"] > 0
    assert evaluated["eval_num_tokens"] == tokens


def test_adapters_of_its_own_peft_config_train_and_resume(tmp_path):
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    settings = {"save_strategy": "steps", "save_steps": 2, "peft_config": lora}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    trained = [n for n, p in whole.model.named_parameters() if "lora_B" in n and p.abs().sum() > 0]
    assert trained
    resumed = trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert digest(resumed.model.named_parameters()) == digest(whole.model.named_parameters())
    assert logged(resumed, "loss") == logged(whole, "loss")


def test_its_default_autocast_gets_the_settings_of_coarse_losses(tmp_path):
    made = trainer(tmp_path, bf16=None, max_steps=1)
    made.train()
    assert made.args.bf16
    optimizer = made.optimizer.optimizer
    assert (optimizer.sides, optimizer.param_groups[0]["eps"]) == ("two", 5e-3)

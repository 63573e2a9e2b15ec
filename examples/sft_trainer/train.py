"""TRL's SFTTrainer with steps of SPZO: LoRA adapters on the demo model learn praise from blame."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from fedspzo.integrations.transformers import SPZOTrainerMixin

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=3)
arguments.add_argument("--output", default="runs/sft_trainer", help="a folder for the adapters")
options = arguments.parse_args()

source = str(files("fedspzo.demo") / "model")
words = {"positive": " great", "negative": " terrible"}


class SPZOSFTTrainer(SPZOTrainerMixin, SFTTrainer):
    pass


def rows(name: str) -> Dataset:
    lines = (Path(__file__).parents[1] / "sentiment" / name).read_text().splitlines()
    pairs = [(row["text"], words[row["label"]]) for row in map(json.loads, lines)]
    return Dataset.from_list([{"prompt": f"{t} It was", "completion": word} for t, word in pairs])


torch.manual_seed(0)
trainer = SPZOSFTTrainer(
    AutoModelForCausalLM.from_pretrained(source),
    SFTConfig(
        options.output,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=50,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=rows("train.jsonl"),
    eval_dataset=rows("test.jsonl"),
    processing_class=AutoTokenizer.from_pretrained(source),
    peft_config=LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules="all-linear"
    ),
    at=-1,
    spzo={"lr": (5e-3, 0.05), "perturbations": (1, 6)},
)
print(f"loss before: {trainer.evaluate()['eval_loss']:.6f}")
trainer.train()
print(f"loss after: {trainer.evaluate()['eval_loss']:.6f}")
trainer.save_model()

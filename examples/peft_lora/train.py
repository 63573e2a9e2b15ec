"""A PEFT loop: LoRA adapters on the packaged demo model learn praise from blame."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedspzo import SPZO, split

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=3)
arguments.add_argument("--output", help="a folder for the trained adapters")
options = arguments.parse_args()

source = str(files("fedspzo.demo") / "model")
tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
base = AutoModelForCausalLM.from_pretrained(source)
torch.manual_seed(0)
config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules="all-linear")
model = get_peft_model(base, config)
model.print_trainable_parameters()
words = {"positive": " great", "negative": " terrible"}


def rows(name: str) -> list[str]:
    lines = (Path(__file__).parents[1] / "sentiment" / name).read_text().splitlines()
    return [f"{row['text']} It was{words[row['label']]}" for row in map(json.loads, lines)]


def collate(texts: list[str]) -> dict[str, torch.Tensor]:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].clone()
    labels[:, :-1] = -100  # only the last word is learned
    return {**batch, "labels": labels}


@torch.no_grad()
def test_loss() -> float:
    losses = [model(**batch).loss.item() for batch in test]
    return sum(losses) / len(losses)


train = DataLoader(rows("train.jsonl"), 16, shuffle=True, collate_fn=collate)
test = DataLoader(rows("test.jsonl"), 50, collate_fn=collate)
optimizer = SPZO(split(model, at=-1), lr=(5e-3, 0.05), perturbations=(1, 6))
print(f"loss before: {test_loss():.4f}")
for _ in range(options.epochs):
    for batch in train:
        optimizer.step(lambda: model(**batch).loss)
print(f"loss after: {test_loss():.4f}")
if options.output:
    model.save_pretrained(options.output)

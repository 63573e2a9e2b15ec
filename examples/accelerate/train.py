"""A Hugging Face loop with accelerate: the packaged demo model learns praise from blame."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from fedspzo import SPZO, split
from fedspzo.journal import digest

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=3)
epochs = arguments.parse_args().epochs

source = str(files("fedspzo.demo") / "model")
tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(source)
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
    losses = [model(**batch).loss.repeat(len(batch["labels"])) for batch in test]
    return accelerator.gather_for_metrics(torch.cat(losses)).mean().item()


set_seed(0)
accelerator = Accelerator()
train = DataLoader(rows("train.jsonl"), 16, shuffle=True, collate_fn=collate)
test = DataLoader(rows("test.jsonl"), 50, collate_fn=collate)
optimizer = SPZO(split(model, at=-1), lr=(2e-3, 0.02), perturbations=(1, 6))
schedule = get_linear_schedule_with_warmup(optimizer, 0, epochs * len(train))
prepared = accelerator.prepare(model, optimizer, train, test, schedule)
model, optimizer, train, test, schedule = prepared
accelerator.print(f"loss before: {test_loss():.4f}")
for _ in range(epochs):
    for batch in train:
        # the mean over all processes, so that all take the same step
        optimizer.step(lambda: accelerator.reduce(model(**batch).loss, "mean"))
        schedule.step()
loss, bits = test_loss(), digest(accelerator.unwrap_model(model).named_parameters())
print(f"loss after: {loss:.4f} (process {accelerator.process_index} holds {bits})")

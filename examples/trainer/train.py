"""transformers' Trainer with steps of SPZO: the packaged demo model learns praise from blame."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from fedspzo.integrations.transformers import SPZOTrainer

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=3)
arguments.add_argument("--output", default="runs/trainer", help="a folder for checkpoints")
arguments.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
options = arguments.parse_args()

source = str(files("fedspzo.demo") / "model")
tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
words = {"positive": " great", "negative": " terrible"}


def rows(name: str) -> list[dict[str, list[int]]]:
    lines = (Path(__file__).parents[1] / "sentiment" / name).read_text().splitlines()
    texts = [f"{row['text']} It was{words[row['label']]}" for row in map(json.loads, lines)]
    return [dict(tokenizer(text)) for text in texts]


def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    batch = tokenizer.pad(examples, return_tensors="pt")
    labels = batch["input_ids"].clone()
    labels[:, :-1] = -100  # only the last word is learned
    return {**batch, "labels": labels}


trainer = SPZOTrainer(
    AutoModelForCausalLM.from_pretrained(source),
    TrainingArguments(
        options.output,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,  # a step evaluates both batches as one of 16
        per_device_eval_batch_size=50,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to="none",
        use_cpu=True,
    ),
    data_collator=collate,
    train_dataset=rows("train.jsonl"),
    eval_dataset=rows("test.jsonl"),
    at=-1,  # as split takes it
    spzo={"lr": (2e-3, 0.02), "perturbations": (1, 6)},
)
if not options.resume:
    print(f"loss before: {trainer.evaluate()['eval_loss']:.6f}")
trainer.train(resume_from_checkpoint=options.resume)
print(f"loss after: {trainer.evaluate()['eval_loss']:.6f}")

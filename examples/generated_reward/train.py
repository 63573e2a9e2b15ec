"""A reward without a gradient: the packaged demo model learns to write the right answer."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding

from fedspzo import SPZO, split

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=3)
epochs = arguments.parse_args().epochs

source = str(files("fedspzo.demo") / "model")
tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(source)
ANSWERS = {"positive": "great.", "negative": "terrible."}


def rows(name: str) -> list[tuple[str, str]]:
    lines = (Path(__file__).parents[1] / "sentiment" / name).read_text().splitlines()
    return [(f"{row['text']} It was", ANSWERS[row["label"]]) for row in map(json.loads, lines)]


def collate(batch: list[tuple[str, str]]) -> tuple[BatchEncoding, list[str]]:
    prompts, answers = zip(*batch, strict=True)
    return tokenizer(list(prompts), padding=True, return_tensors="pt"), list(answers)


@torch.no_grad()
def exact_match(prompts: BatchEncoding, answers: list[str]) -> float:
    """The share of texts that the model writes exactly as it should. It has no gradient."""
    # without a cache the layers before the cut are replayed as long as the text is the same
    tokens = model.generate(**prompts, max_new_tokens=2, do_sample=False, use_cache=False)
    written = tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :])
    return sum(w.strip() == a for w, a in zip(written, answers, strict=True)) / len(answers)


train = DataLoader(
    rows("train.jsonl"), 64, shuffle=True, collate_fn=collate, generator=torch.manual_seed(0)
)
test = collate(rows("test.jsonl"))
# eps is larger than for a smooth loss: a count changes in jumps
optimizer = SPZO(split(model, at=-1), lr=(2e-3, 0.02), eps=0.03, perturbations=(1, 8))
print(f"exact match before: {exact_match(*test):.3f}")
for epoch in range(1, epochs + 1):
    losses = [optimizer.step(lambda batch=batch: 1 - exact_match(*batch)) for batch in train]
    print(f"epoch {epoch}: wrong answers {sum(losses) / len(losses):.3f}")
print(f"exact match after: {exact_match(*test):.3f}")

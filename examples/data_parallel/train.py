"""Several processes, each with its share of the data, that exchange losses alone.

torchrun --nproc-per-node 2 examples/data_parallel/train.py [--shard]
"""

import argparse
import json
import os
from importlib.resources import files
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedspzo import SPZO, split
from fedspzo.journal import digest

arguments = argparse.ArgumentParser()
arguments.add_argument("--epochs", type=int, default=3)
arguments.add_argument(
    "--shard", action="store_true", help="each process holds a part of the model"
)
options = arguments.parse_args()

gpu = torch.cuda.is_available()
dist.init_process_group("nccl" if gpu else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
if gpu:
    torch.cuda.set_device(device)

source = str(files("fedspzo.demo") / "model")
tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(source).to(device)
if options.shard:
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
words = {"positive": " great", "negative": " terrible"}


def rows(name: str) -> list[str]:
    lines = (Path(__file__).parents[1] / "sentiment" / name).read_text().splitlines()
    return [f"{row['text']} It was{words[row['label']]}" for row in map(json.loads, lines)]


def collate(texts: list[str]) -> dict[str, torch.Tensor]:
    batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    labels = batch["input_ids"].clone()
    labels[:, :-1] = -100  # only the last word is learned
    return {**batch, "labels": labels}


@torch.no_grad()
def test_loss() -> float:
    losses = [model(**batch).loss.item() for batch in test]
    return sum(losses) / len(losses)


train_rows = rows("train.jsonl")
sampler = DistributedSampler(train_rows)
train = DataLoader(train_rows, 8, sampler=sampler, collate_fn=collate)
test = DataLoader(rows("test.jsonl"), 50, collate_fn=collate)
optimizer = SPZO(
    split(model, at=-1), lr=(2e-3, 0.02), perturbations=(1, 6), process_group=dist.group.WORLD
)
before = test_loss()
for epoch in range(options.epochs):
    sampler.set_epoch(epoch)
    for batch in train:
        optimizer.step(lambda: model(**batch).loss)
after, bits = test_loss(), digest(model.named_parameters())
print(
    f"process {dist.get_rank()}: loss before: {before:.6f}, loss after: {after:.6f}, holds {bits}"
)
dist.destroy_process_group()

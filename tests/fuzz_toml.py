"""A config that is right, for fuzz tests to spoil, and the files that it names."""

from __future__ import annotations

from pathlib import Path

TOML = """
[model]
name = "net"
dtype = "float32"
[task]
type = "prompt"
template = "{text} it was"
verbalizers = { good = "great", bad = "awful" }
[data]
train = "train.jsonl"
test = "test.csv"
max_length = 64
[federation]
clients = 2
rounds = 4
participation = 0.5
partition = "dirichlet"
alpha = 0.5
[optimizer]
lr = [1e-3, 2e-3]
perturbations = [1, 2]
at = -1
[privacy]
clip = 1.0
noise_multiplier = 1.0
[output]
dir = "out"
evaluate_every = 2
"""


def write_named_files(folder: Path) -> None:
    (folder / "net").mkdir()
    (folder / "net" / "config.json").write_text("{}")
    (folder / "net" / "model.safetensors").write_bytes(b"")
    (folder / "train.jsonl").write_text('{"text": "a", "label": "good"}\n')
    (folder / "test.csv").write_text("text,label\na,good\n")

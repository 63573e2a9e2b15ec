"""Tiny runs of each kind of task, as files: a random base, data, a config that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedspzo.app.cli import main

SPECIAL = ["[PAD]", "[UNK]", "[MASK]", "[EOS]"]
WORDS = [
    *SPECIAL,
    "a",
    "fine",
    "bad",
    "dull",
    "film",
    "it",
    "was",
    "great",
    "awful",
    "very",
    "good",
]
CONFIG = """
[model]
name = "net"
{model}
[task]
{task}
[data]
train = "train.jsonl"
test = "test.jsonl"
max_length = 24
{data}
[federation]
clients = 2
rounds = 3
batch_size = 4
{federation}
[optimizer]
lr = 5e-3
perturbations = [1, 2]
at = -1
"""
PROMPT = """type = "prompt"
template = "{text} it was"
verbalizers = { good = "great", bad = "awful" }"""
SEVERAL = PROMPT.replace('"great"', '"very great"')
MASKED = PROMPT.replace("it was", "it was {mask}")
HEADED = 'type = "classification"\nlabels = { good = "POS", bad = "NEG" }'
TEMPLATE = """{%- for one in messages -%}
{{ 'it' if one['role'] == 'user' else 'very' }} {{ one['content'] }} [EOS]
{%- endfor -%}
{%- if add_generation_prompt -%}very{%- endif -%}"""
NEW_HEAD = 'type = "classification"\nnew_head = true'
LORA = 'adapter = "lora"\n[model.lora]\nr = 2\nseed = 7'
KINDS: dict[str, dict[str, str]] = {
    "prompt": {"task": PROMPT},
    "chat": {"task": f"{PROMPT}\nchat = true"},
    "bfloat16": {"task": PROMPT, "model": 'dtype = "bfloat16"'},
    "several": {"task": SEVERAL},
    "masked": {"net": "masked", "task": MASKED},
    "new head": {"net": "encoder", "task": 'type = "classification"'},
    "own head": {"net": "headed", "task": HEADED},
    "replaced head": {"net": "headed", "task": NEW_HEAD},
    "completion": {"task": 'type = "completion"\nmetric_rows = 4'},
    "chat completion": {"task": 'type = "completion"\nmetric_rows = 4\nchat = true'},
    "lm": {"task": 'type = "lm"'},
    "lora prompt": {"task": PROMPT, "model": LORA},
    "lora masked": {"net": "masked", "task": MASKED, "model": LORA},
    "lora head": {"net": "encoder", "task": 'type = "classification"', "model": LORA},
    "lora own head": {"net": "headed", "task": HEADED, "model": LORA},
    "lora replaced head": {"net": "headed", "task": NEW_HEAD, "model": LORA},
    "lora completion": {"task": 'type = "completion"\nmetric_rows = 4', "model": LORA},
}
SIZE = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32}
LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 2}


def write(folder: Path, kind: str, **changes: str) -> Path:
    """Write everything that a run of this kind needs, and return the config's path."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.set_num_threads(1)
    parts = {**KINDS[kind], **changes}
    net = parts.get("net", "llama")
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "mask_token", "eos_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32, **names)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "net")
    made: Any = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, **LAYERS, eos_token_id=3)),
        "masked": lambda: BertForMaskedLM(BertConfig(**SIZE, **LAYERS)),
        "encoder": lambda: BertModel(BertConfig(**SIZE, **LAYERS)),
        "headed": lambda: BertForSequenceClassification(
            BertConfig(**SIZE, **LAYERS, id2label={0: "NEG", 1: "POS"})
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made[net]().save_pretrained(folder / "net")
    headed = net == "headed" and "new_head" in parts["task"]
    good, bad = ("POS", "NEG") if headed else ("good", "bad")
    rows = [
        {"text": text, "label": label, "prompt": text, "answer": "it was " + word}
        for text, label, word in (
            ("a fine film", good, "great"),
            ("dull", bad, "awful"),
            ("a very very good film", good, "great"),
            ("a bad bad dull film", bad, "awful"),
            ("great", good, "very great"),
            ("it was awful", bad, "awful"),
            ("very fine", good, "good"),
            ("a film", good, "very good"),
            ("bad bad film", bad, "awful"),
        )
    ]
    for name, part in (("train.jsonl", rows[:4] * 3), ("test.jsonl", rows[4:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    text = CONFIG
    for key in ("model", "task", "data", "federation"):
        text = text.replace(f"{{{key}}}", parts.get(key, ""), 1)
    path = folder / "run.toml"
    path.write_text(text)
    return path


def run(folder: Path, kind: str, **changes: str) -> dict[str, Any]:
    """Run it to `folder`/out, and return the summary."""
    path = write(folder, kind, **changes)
    assert main(["run", str(path), "--quiet", "--output", str(folder / "out")]) in (0, 4)
    return json.loads((folder / "out" / "metrics.jsonl").read_text().splitlines()[-1])

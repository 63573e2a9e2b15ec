"""A run of seconds on a random model of a few thousand weights, as files: model, data, config."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "a", "fine", "bad", "dull", "film", "it", "was", "great", "awful"]
CONFIG = """
[model]
name = "net"
dtype = "{dtype}"
[task]
type = "prompt"
template = "{text} it was"
verbalizers = { good = "great", bad = "awful" }
[data]
train = "train.jsonl"
test = "test.csv"
[federation]
clients = 3
rounds = 4
batch_size = 4
local_steps = 2
participation = 0.7
[optimizer]
lr = 1e-3
[mezo]
lr = 1e-3
[output]
evaluate_every = 2
"""


def write_run(folder: Path, dtype: str = "float32") -> None:
    """Everything that `fedspzo run run.toml` needs in `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder / "net")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), num_hidden_layers=3, **size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "net")
    rows = [{"text": f"a {w} film", "label": n} for w, n in (("fine", "good"), ("dull", "bad"))]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    (folder / "test.csv").write_text("text,label\nfine film,good\nbad film,bad\n")
    (folder / "run.toml").write_text(CONFIG.replace("{dtype}", dtype))

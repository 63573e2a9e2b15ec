"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from forked_python import ForkedPython

CONFIG = """
[model]
name = "net"
[task]
type = "prompt"
template = "{text} it was"
verbalizers = { good = "great", bad = "awful" }
[data]
train = "train.jsonl"
test = "test.csv"
[federation]
clients = 2
rounds = 4
batch_size = 4
[optimizer]
lr = 1e-3
perturbations = [1, 2, 4]
at = [-1, "head"]
[output]
evaluate_every = 2
"""
WORDS = ["[PAD]", "[UNK]", "a", "fine", "bad", "dull", "film", "it", "was", "great", "awful"]

# Fails if torch or transformers are imported: what must come before anything heavy.
LIGHT = """
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "numpy", "matplotlib"):
            raise RuntimeError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from fedspzo.app.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random causal model with its tokenizer, as save_pretrained writes them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("net")
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), num_hidden_layers=3, **size)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, net: Path) -> Path:
    (tmp_path / "net").symlink_to(net)
    rows = [{"text": f"a {w} film", "label": n} for w, n in (("fine", "good"), ("dull", "bad"))]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    (tmp_path / "test.csv").write_text("text,label\nfine film,good\nbad film,bad\n")
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def fedspzo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("fedspzo: error: ")
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_and_version_import_nothing_heavy(folder: Path, arguments: list[str]) -> None:
    done = fedspzo(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert "fedspzo" in done.stdout


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


BAD = [
    ("run.toml", "clients", "clints", ["run.toml: [federation]", "'clints' = 2", "'clients'"]),
    ("run.toml", "rounds = 4", 'rounds = "4"', ["rounds is '4'", "whole number"]),
    ("run.toml", "rounds = 4", "rounds = -4", ["rounds is -4"]),
    ("run.toml", "lr = 1e-3", "lr = inf", ["[optimizer] lr is inf"]),
    ("run.toml", '"train.jsonl"', '"gone.jsonl"', ["train is 'gone.jsonl'", "correct the path"]),
    ("run.toml", '"net"', '"./gone"', ["[model] name is './gone'"]),
    ("run.toml", "clients = 2", "clients = 9", ["clients is 9", "8 examples"]),
    ("run.toml", 'bad = "awful"', 'meh = "awful"', ["train.jsonl, line 2", "'bad'", "verbalizers"]),
    ("run.toml", 'bad = "awful"', 'bad = "awful", meh = "dull"', ["no row", "'meh'"]),
    ("run.toml", "[data]", "[data", ["run.toml: not valid TOML"]),
    ("test.csv", "label", "lable", ["test.csv, line 2: field 'label' is missing", "'lable'"]),
    ("test.csv", "fine film,good", "fine, film,good", ["test.csv, line 2: 3 cells"]),
    ("train.jsonl", "}\n", "\n", ["train.jsonl, line 1: not valid JSON"]),
    ("train.jsonl", '"a fine film"', "7", ["train.jsonl, line 1: 'text' is 7"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new", "parts"), BAD, ids=[b[2][:30] for b in BAD])
def test_bad_input_is_one_line_before_anything_heavy(
    folder: Path, name: str, old: str, new: str, parts: list[str]
) -> None:
    edit(folder, name, old, new)
    before = sorted(folder.rglob("*"))
    assert_refused(fedspzo(folder, "run", "run.toml"), *parts)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["COMMAND"]),
        (["train"], ["'train'"]),
        (["run"], ["CONFIG.toml"]),
        (["predict", "net"], ["'net': holds no fedspzo.json; name the folder 'model'"]),
        (["eval", "net"], ["FILE"]),
        (["run", "gone.toml"], ["gone.toml: no such config file"]),
        (["run", "run.toml", "--rounds", "many"], ["--rounds", "'many'"]),
        (["run", "run.toml", "--rounds", "0"], ["command line", "rounds is 0"]),
        (["run", "run.toml", "--seed", "-1"], ["command line", "seed is -1"]),
        (["run", "run.toml", "--output", "run.toml"], ["'run.toml' is no folder"]),
    ],
)
def test_bad_arguments_are_one_line(folder: Path, arguments: list[str], parts: list[str]) -> None:
    assert_refused(fedspzo(folder, *arguments), *parts)


def test_bytes_that_are_no_text_are_one_line(folder: Path) -> None:
    (folder / "test.csv").write_bytes(b"text,label\nfine,good\n\xff,bad\n")
    done = fedspzo(folder, "run", "run.toml")
    assert_refused(done, "test.csv, line 3", "0xff is not UTF-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "caf\udce9.toml"],
        ["run", "run.toml", "--output", "caf\udce9"],
        ["run", "--resume", "caf\udce9"],
    ],
)
def test_a_path_that_is_no_text_is_one_line(folder: Path, arguments: list[str]) -> None:
    (folder / "caf\udce9.toml").write_text((folder / "run.toml").read_text())
    assert_refused(fedspzo(folder, *arguments), "is no text in the encoding", "rename it")


def test_a_config_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    edit(folder, "run.toml", "clients = 2", "clients = 9")
    assert_refused(fedspzo(folder, "run", "run.toml"), "clients is 9")


def test_an_existing_run_or_other_files_are_not_overwritten(folder: Path) -> None:
    # The folder of the config itself: a resolved config.toml must not replace the user's.
    (folder / "run.toml").rename(folder / "config.toml")
    text = (folder / "config.toml").read_text()
    done = fedspzo(folder, "run", "config.toml", "--output", ".", "--overwrite")
    assert_refused(done, "holds 'config.toml', but no run")
    assert (folder / "config.toml").read_text() == text

    old = folder / "runs" / folder.name
    old.mkdir(parents=True)
    (old / "metrics.jsonl").write_text("{}\n")
    assert_refused(fedspzo(folder, "run", "config.toml"), f"runs/{folder.name}", "--overwrite")
    assert (old / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.slow
def test_info_names_versions_and_every_backend_with_its_reason(
    python: ForkedPython, folder: Path
) -> None:
    done = python("-m", "fedspzo", "info", folder=folder)
    assert done.returncode == 0, done.stderr
    for part in ("torch", "transformers", "reference", "cpu", "cuda", "triton", "threads", "GPU"):
        assert part in done.stdout


@pytest.mark.slow
def test_a_run_in_its_own_process(python: ForkedPython, folder: Path) -> None:
    arguments = ("run", "run.toml", "--rounds", "1", "--output", "out")
    done = python("-m", "fedspzo", *arguments, imports=("transformers",), folder=folder)
    assert done.returncode == 0, done.stderr
    assert "FedSPZO  round 1/1" in done.stderr
    assert "accuracy" in done.stdout
    summary = json.loads((folder / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["rounds"] == 1
    resolved = tomllib.loads((folder / "out" / "config.toml").read_text())
    assert resolved["federation"]["rounds"] == 1

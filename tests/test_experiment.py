"""Whole runs from config to folder, on a tiny random model."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedspzo.app.cli import main

pytestmark = pytest.mark.slow

SPECIAL = ["[PAD]", "[UNK]", "[MASK]"]
WORDS = [*SPECIAL, "a", "fine", "bad", "dull", "film", "it", "was", "great", "awful"]
CONFIG = """
[model]
name = "{model}"
[task]
{task}
[data]
train = "train.jsonl"
test = "test.csv"
[federation]
clients = 3
rounds = 6
batch_size = 4
{federation}
[optimizer]
lr = 1e-3
perturbations = [1, 2, 4]
at = [-1, "head"]
[output]
evaluate_every = 4
"""
PROMPT = """type = "prompt"
template = "{text} it was"
verbalizers = { good = "great", bad = "awful" }"""
SIZE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models with their tokenizer, as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("nets")
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    torch.manual_seed(0)
    for name, model in {
        "llama": LlamaForCausalLM(LlamaConfig(**SIZE)),
        "bert": BertForMaskedLM(BertConfig(**SIZE)),
        "encoder": BertModel(BertConfig(**SIZE)),
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def write(tmp_path: Path, nets: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes data and a config, and makes their folder the current one."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": f"a {word} film", "label": label}
        for word, label in (("fine", "good"), ("dull", "bad"), ("great", "good"))
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    (tmp_path / "test.csv").write_text("text,label\nfine film,good\nbad film,bad\na film,bad\n")

    def config(
        model: str = "llama", task: str = PROMPT, federation: str = "", end: str = ""
    ) -> Path:
        text = CONFIG.replace("{model}", str(nets / model)).replace("{task}", task)
        path = tmp_path / "mine.toml"
        path.write_text(text.replace("{federation}", federation) + end)
        return path

    return config


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*arguments: object) -> list[dict[str, Any]]:
    """Runs a config in this process; the lines of its metrics.jsonl."""
    assert main(["run", *map(str, arguments)]) == 0
    return rows_of(Path("runs/mine/metrics.jsonl"))


@pytest.mark.usefixtures("painted")
def test_a_run_leaves_model_metrics_config_and_figure(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    dirichlet = 'partition = "dirichlet"\nalpha = 0.3\nparticipation = 0.7\nlocal_steps = 2'
    lines = run(write(federation=dirichlet))
    assert [line["round"] for line in lines[:-1]] == list(range(7))
    assert [line["round"] for line in lines[:-1] if line["accuracy"] is not None] == [0, 4, 6]
    assert all(len(line["clients"]) == 2 for line in lines[1:-1])
    last, summary = lines[-2], lines[-1]
    assert summary["summary"] is True
    for key in ("accuracy", "loss", "forwards", "bytes_up", "bytes_down", "digest"):
        assert summary[key] == last[key]
    assert summary["zero_shot_accuracy"] == lines[0]["accuracy"]
    assert summary["majority_accuracy"] == pytest.approx(2 / 3)
    assert summary["digest"] != lines[0]["digest"]
    assert summary["bytes_up"] < summary["fedavg_bytes"]

    folder = Path("runs/mine")
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    used = tomllib.loads((folder / "config.toml").read_text())["optimizer"]
    assert used["lr"] == [1e-3, 2e-3, 4e-3]  # by the rule, P_b / P1
    assert (used["estimator"], used["perturbations"]) == ("anchored", [1, 2, 4])
    assert [path.name for path in folder.glob(".*")] == [".lock"]
    shown = capsys.readouterr()
    assert summary["digest"] in shown.out
    assert "round 6/6" in shown.err

    # The saved model is the one whose digest was reported, its verbalizers' rows put apart again.
    from fedspzo.blocks.output_rows import untie_rows
    from fedspzo.journal.reader import JournalReader
    from fedspzo.journal.records import digest

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    untie_rows(model, JournalReader(folder / "journal.fspz").header["model"]["rows"])
    assert digest(model.named_parameters()) == summary["digest"]
    assert AutoTokenizer.from_pretrained(folder / "model").mask_token == "[MASK]"


def test_the_same_config_gives_the_same_weights_and_another_seed_others(write: Write) -> None:
    path = write()
    first = run(path, "--quiet")[-1]
    # The resolved config runs again, from another folder, to the same bits.
    again = Path("runs/mine/config.toml").rename("mine.toml")
    assert run(again, "--quiet", "--overwrite")[-1]["digest"] == first["digest"]
    other = run(path, "--quiet", "--overwrite", "--seed", 1, "--rounds", 2)
    assert len(other) == 4
    assert other[-1]["digest"] != first["digest"]


def test_quiet_prints_nothing(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    run(write(), "--quiet", "--rounds", 1)
    assert capsys.readouterr() == ("", "")


def test_mezo_runs_beside_at_the_same_computation(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(write(end="[mezo]\nlr = 1e-4\n"), "--rounds", 20)[-1]
    rows = rows_of(Path("runs/mine/mezo.jsonl"))
    assert rows[0]["accuracy"] == summary["zero_shot_accuracy"]
    assert rows[0]["loss"] == summary["zero_shot_loss"]
    assert rows[-1]["forwards"] == summary["mezo_forwards"]
    a_round = 2 * 3
    assert abs(summary["mezo_forwards"] - summary["forwards"]) <= a_round
    assert summary["mezo_accuracy"] == rows[-1]["accuracy"]
    assert "MeZO" in capsys.readouterr().out


def test_a_private_run_tells_what_it_spent(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    private = "[privacy]\nclip = 1.0\nnoise_multiplier = 2.0\ndelta = 0.01\n"
    lines = run(write(end=private, federation="local_steps = 2"))
    assert all(line["train_loss"] is None for line in lines[:-1])
    assert [line["round"] for line in lines[:-1] if "epsilons" in line] == [0, 4, 6]
    summary = lines[-1]
    assert summary["delta"] == 0.01
    assert summary["epsilons"] == lines[-2]["epsilons"]
    assert len(summary["epsilons"]) == 3
    assert all(epsilon > 0 for epsilon in summary["epsilons"])
    assert summary["skipped"] == 0
    told = f"epsilon {max(summary['epsilons']):.3g} at delta 0.01"
    assert told in capsys.readouterr().out
    # Randomness is secret: the same config gives other weights, which all participants hold.
    assert run(write(end=private), "--quiet", "--overwrite")[-1]["digest"] != summary["digest"]
    lm = run(write(end=private, task='type = "lm"'), "--quiet", "--overwrite", "--rounds", 1)
    assert lm[-1]["epsilons"]


def test_privacy_that_promises_nothing_is_refused(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(end="[privacy]\nclip = 1.0\nnoise_multiplier = 2.0\ndelta = 0.3\n")
    assert main(["run", str(path), "--quiet"]) == 2
    assert "[privacy] delta is 0.3, but of 4 examples" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_new_head_is_the_same_for_everybody_and_follows_the_seed(
    write: Write, dtype: str
) -> None:
    path = write("encoder", 'type = "classification"')
    path.write_text(path.read_text().replace("[task]", f'dtype = "{dtype}"\n[task]'))
    first = run(path, "--quiet")
    assert first[0]["digest"] == run(path, "--quiet", "--overwrite")[0]["digest"]
    seeded = run(path, "--quiet", "--overwrite", "--seed", 1)
    assert first[0]["digest"] != seeded[0]["digest"]
    model = AutoModelForSequenceClassification.from_pretrained("runs/mine/model")
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_masked_prompts_and_language_modelling_run(write: Write) -> None:
    masked = PROMPT.replace("{text} it was", "{text} it was {mask}")
    assert run(write("bert", masked), "--quiet")[-1]["accuracy"] >= 0
    summary = run(write("llama", 'type = "lm"'), "--quiet", "--overwrite")[-1]
    assert "majority_accuracy" not in summary


WRONG = [
    ("llama", PROMPT.replace("it was", "it was {mask}"), ["LlamaForCausalLM", "remove {mask}"]),
    ("bert", PROMPT, ["BertForMaskedLM", "put {mask}"]),
    ("encoder", PROMPT, ["lack", "'classification'"]),
    ("llama", PROMPT.replace("awful", "zzz"), ["[task.verbalizers] bad is 'zzz'"]),
    (
        "bert",
        PROMPT.replace("it was", "it was {mask}").replace("awful", "awful film"),
        ["'awful film'", "2 tokens", "a causal model"],
    ),
]


@pytest.mark.parametrize(("model", "task", "parts"), WRONG)
def test_a_model_that_does_not_fit_its_task_is_one_line_and_writes_nothing(
    write: Write,
    capsys: pytest.CaptureFixture[str],
    model: str,
    task: str,
    parts: list[str],
) -> None:
    assert main(["run", str(write(model, task)), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not Path("runs").exists()


def test_a_cut_that_is_no_layer_is_one_line(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    path.write_text(path.read_text().replace('at = [-1, "head"]', "at = 7"))
    assert main(["run", str(path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "[optimizer] at is 7" in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1, 2, 4]", "[1, 2]", "perturbations is (1, 2), but there are 3 blocks"),
        ("lr = 1e-3\nperturbations = [1, 2, 4]", "lr = [1e-3, 1e-3]", "but there are 3 blocks"),
        (
            "perturbations = [1, 2, 4]",
            'estimator = "balanced"',
            "needs two blocks, but there are 3",
        ),
    ],
)
def test_settings_for_another_number_of_blocks_are_one_line(
    write: Write, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    path = write()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert main(["run", str(path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "[optimizer]" in error
    assert message in error
    assert not Path("runs").exists()


def test_a_run_cut_in_two_with_measured_perturbations(write: Write) -> None:
    path = write()
    two = 'at = ["layers.2"]\nestimator = "balanced"'
    three = 'perturbations = [1, 2, 4]\nat = [-1, "head"]'
    path.write_text(path.read_text().replace(three, two))
    first = run(path, "--quiet", "--rounds", 2)[-1]
    used = tomllib.loads(Path("runs/mine/config.toml").read_text())["optimizer"]
    assert (used["at"], used["estimator"], len(used["perturbations"])) == (
        ["layers.2"],
        "balanced",
        2,
    )
    again = Path("runs/mine/config.toml").rename("mine.toml")
    assert run(again, "--quiet", "--overwrite")[-1]["digest"] == first["digest"]


def test_a_hub_id_that_cannot_be_fetched_is_one_line(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = write()
    text = path.read_text()
    name = tomllib.loads(text)["model"]["name"]
    path.write_text(text.replace(name, "nobody/no-such-model"))
    assert main(["run", str(path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "[model] name is 'nobody/no-such-model', which does not load" in error
    assert not Path("runs").exists()


def test_a_model_that_could_not_be_saved_is_refused_before_it_trains(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    name = tomllib.loads(path.read_text())["model"]["name"]
    copy = tmp_path / "quantized"
    shutil.copytree(path.parent / name, copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gguf", "gguf_file": "x.gguf"}
    (copy / "config.json").write_text(json.dumps(config))
    path.write_text(path.read_text().replace(name, str(copy)))
    assert main(["run", str(path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    # without the package gguf transformers does not load it at all
    assert "whose config says that it is quantized (gguf)" in error or "gguf" in error
    assert not Path("runs").exists()


def test_the_demo_runs_its_config_again_and_again(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedspzo.app.commands.run.DEMO_CONFIG", write(end="[mezo]\nlr = 1e-4\n"))
    for _ in range(2):
        assert main(["demo", "--quiet", "--rounds", "2"]) == 0
    summary = rows_of(Path("runs/mine/metrics.jsonl"))[-1]
    assert {"mezo_accuracy", "zero_shot_accuracy", "accuracy"} <= set(summary)


def test_clients_with_examples_of_their_own(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(task=PROMPT)
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["who"] = "ann" if number < 7 else "bob"
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.write_text(path.read_text().replace("[data]", '[data]\nclient = "who"'))
    assert main(["run", str(path), "--rounds", "1"]) == 2
    error = capsys.readouterr().err
    assert "clients is 3, but" in error
    assert "examples of 2 clients ('ann', 'bob'); set clients = 2" in error
    path.write_text(path.read_text().replace("clients = 3", "clients = 2"))
    assert main(["run", str(path), "--rounds", "1"]) == 0
    shown = capsys.readouterr().err
    assert "fedspzo: 2 clients with 5 to 7 examples\n" in shown
    assert "fedspzo:   client ann: 7 examples (5 good, 2 bad)\n" in shown
    assert main(["journal", "show", "runs/mine/journal.fspz", "--round", "1"]) == 0
    assert "client 0: 7 examples" in capsys.readouterr().out
    lm = path.read_text().replace(PROMPT, 'type = "lm"')
    path.write_text(lm.replace("[federation]", '[federation]\npartition = "dirichlet"'))
    assert main(["run", str(path)]) == 2


def test_a_gpu_that_is_not_there_is_named(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    path = write()
    path.write_text(path.read_text().replace("[task]", 'device = "cuda"\n[task]', 1))
    assert main(["run", str(path)]) == 2
    assert 'device is "cuda", but torch finds no CUDA device' in capsys.readouterr().err

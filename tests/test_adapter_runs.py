"""Whole runs that train LoRA adapters: what is journalled, saved, replayed and opened."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_toys import LORA, run, write
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from fedspzo.app import config as configuration
from fedspzo.app.cli import main
from fedspzo.app.predictions import predict
from fedspzo.app.saved_model import open_saved
from fedspzo.errors import InputError
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.journal.records import digest

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("adapters")
    return folder, run(folder, "lora prompt")


AUTO = {
    "prompt": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "head": AutoModelForSequenceClassification,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", AUTO)
def test_peft_opens_what_was_saved(tmp_path: Path, kind: str) -> None:
    run(tmp_path, f"lora {kind}")
    folder = tmp_path / "out" / "model"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "net")
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (2, 16, "LORA")
    torch.manual_seed(1)
    extra = {"num_labels": 2} if kind == "head" else {}
    base = AUTO[kind].from_pretrained(settings["base_model_name_or_path"], **extra)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    opened = open_saved(folder).model
    ids = torch.tensor([[4, 5, 8, 2, 9]])
    with torch.no_grad():
        ours = opened(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, ours)
        with model.disable_adapter():
            assert not torch.equal(model(input_ids=ids).logits, ours)
    assert AutoTokenizer.from_pretrained(folder).mask_token == "[MASK]"


HEADLESS = {
    "a head alone": ("LlamaModel", {"score"}),
    "a pooler": ("BertForMaskedLM", {"bert.pooler.dense", "classifier"}),
    "a head of two layers": ("RobertaModel", {"classifier"}),
    "two heads": ("DistilBertModel", {"pre_classifier", "classifier"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HEADLESS)
def test_what_the_base_lacks_is_saved_with_the_adapters(tmp_path: Path, case: str) -> None:
    import transformers

    name, new = HEADLESS[case]
    write(tmp_path, "lora head")
    torch.manual_seed(0)
    maker = getattr(transformers, name)
    bert = json.loads((tmp_path / "net" / "config.json").read_text())
    size = {key: bert[key] for key in ("vocab_size", "hidden_size", "num_attention_heads")}
    size |= {"num_hidden_layers": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    maker(maker.config_class(**size)).save_pretrained(tmp_path / "net")
    path = tmp_path / "run.toml"
    assert main(["run", str(path), "--quiet", "--output", str(tmp_path / "out")]) in (0, 4)
    folder = tmp_path / "out" / "model"
    saved = {key.removeprefix("base_model.model.") for key in load_file(folder / WEIGHTS)}
    whole = {key for key in saved if "lora_" not in key}
    assert {one for one in new if any(key.startswith(f"{one}.") for key in whole)} == new
    assert all(key.startswith(tuple(new)) for key in whole)
    torch.manual_seed(99)  # PEFT's user gets a new head of another seed, which is replaced
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "net", num_labels=2)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    ids = torch.tensor([[4, 5, 8, 9]])
    with torch.no_grad():
        ours = open_saved(folder).model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, ours)
    assert main(["verify", str(folder), str(tmp_path / "out" / "journal.fspz")]) == 0


@pytest.mark.slow
def test_the_output_layers_adapter_is_a_block_also_where_it_is_tied(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    names = 'target_modules = ["q_proj", "lm_head"]'
    path = write(tmp_path, "prompt", model=f"{LORA}\n{names}")
    settings = json.loads((tmp_path / "net" / "config.json").read_text())
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig(**{**settings, "tie_word_embeddings": True}))
    tied.save_pretrained(tmp_path / "net")
    text = path.read_text().replace("lr = 5e-3\nperturbations = [1, 2]\nat = -1", 'lr = "auto"')
    path.write_text(text)
    assert main(["run", str(path), "--quiet", "--output", str(tmp_path / "out")]) in (0, 4)
    header = DecodedJournal(tmp_path / "out" / "journal.fspz").header
    assert {p.block for p in header.parameters if "lm_head.lora" in p.name} == {2}
    assert {p.block for p in header.parameters if "q_proj.lora" in p.name} == {1}
    folder = tmp_path / "out" / "model"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "net")
    assert base.lm_head.weight is base.model.embed_tokens.weight
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    ids = torch.tensor([[4, 5, 8]])
    with torch.no_grad():
        ours = open_saved(folder).model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, ours)


@pytest.mark.slow
def test_a_pipeline_opens_adapters_with_their_base(done: tuple[Path, dict[str, Any]]) -> None:
    folder = done[0] / "out" / "model"
    generate = pipeline("text-generation", model=str(folder))
    ids = torch.tensor([[4, 5, 8]])
    with torch.no_grad():
        assert torch.equal(
            generate.model(input_ids=ids).logits, open_saved(folder).model(input_ids=ids).logits
        )


@pytest.mark.slow
def test_adapters_alone_are_trained_journalled_and_saved(
    done: tuple[Path, dict[str, Any]],
) -> None:
    folder, summary = done
    log = DecodedJournal(folder / "out" / "journal.fspz")
    moved = [p for p in log.header.parameters if p.block]
    assert {p.name for p in moved} == {p.name for p in log.header.parameters if "lora_" in p.name}
    assert {p.block for p in moved} == {1, 2}
    assert any(p.block == 1 and "layers.0" in p.name for p in moved)
    assert log.header.model["adapter"]["seed"] == 7
    with safe_open(folder / "out" / "model" / WEIGHTS, "pt") as file:
        names = set(file.keys())
    assert {name.replace(".weight", ".default.weight") for name in names} == {p.name for p in moved}
    trained = sum(math.prod(p.shape) for p in moved)
    # 3 rounds, 2 clients: what federated averaging would send is the adapters alone
    assert summary["fedavg_bytes"] == 3 * 2 * trained * 4
    opened = open_saved(folder / "out")
    assert digest(opened.model.named_parameters()) == summary["digest"]
    base = AutoModelForCausalLM.from_pretrained(folder / "net")
    kept = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): weight
        for name, weight in opened.model.named_parameters()
        if "lora_" not in name
    }
    assert kept.keys() == dict(base.named_parameters()).keys()
    assert all(torch.equal(kept[name], weight) for name, weight in base.named_parameters())


@pytest.mark.slow
def test_replay_verify_compact_and_resume(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, summary = done
    net, journal, model = (folder / name for name in ("net", "out/journal.fspz", "out/model"))

    def command(*arguments: object) -> str:
        assert main([str(one) for one in arguments]) == 0
        return capsys.readouterr().out

    assert summary["digest"] in command("replay", net, journal, "-o", tmp_path / "whole")
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert f"that of round 3 of {journal}" in command("verify", folder / "out", journal)
    assert main(["verify", str(model), str(journal), "--round", "2"]) == 1
    command("replay", net, journal, "--round", 1, "-o", tmp_path / "one", "--quiet")
    assert "that of round 1" in command("verify", tmp_path / "one", journal, "--round", 1)
    command("journal", "compact", journal, "-o", tmp_path / "all.fspz")
    assert summary["digest"] in command("replay", net, tmp_path / "all.fspz", "-o", tmp_path / "c")
    command("journal", "compact", journal, "-o", tmp_path / "tail.fspz", "--after", 1)
    tail = command("replay", tmp_path / "one", tmp_path / "tail.fspz", "-o", tmp_path / "d")
    assert summary["digest"] in tail

    again = tmp_path / "again"
    shutil.copytree(folder / "out", again)
    for name in ("net", "train.jsonl", "test.jsonl", "run.toml"):
        (shutil.copytree if name == "net" else shutil.copy)(folder / name, tmp_path / name)
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(lines[:-1]))
    command("run", "--resume", again, "--rounds", 5, "--quiet")
    straight = json.loads((again / "metrics.jsonl").read_text().splitlines()[-1])["digest"]
    command("run", folder / "run.toml", "--rounds", 5, "--output", tmp_path / "five", "--quiet")
    five = json.loads((tmp_path / "five" / "metrics.jsonl").read_text().splitlines()[-1])
    assert five["digest"] == straight != summary["digest"]


@pytest.mark.slow
def test_the_example_learns_and_is_opened_by_peft(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "examples" / "lora" / "config.toml"
    out = tmp_path / "out"
    assert main(["run", str(path), "--quiet", "--rounds", "22", "--output", str(out)]) == 0
    summary = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["zero_shot_accuracy"] < 0.8
    assert summary["accuracy"] > summary["zero_shot_accuracy"] + 0.05
    model = peft.AutoPeftModelForCausalLM.from_pretrained(out / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    tokens = [tokenizer(w, add_special_tokens=False).input_ids[-1] for w in (" great", " terrible")]
    rows = (path.parents[1] / "sentiment" / "test.jsonl").read_text().splitlines()[:30]
    texts = [json.loads(row)["text"] for row in rows]
    for text, row in zip(texts, predict(open_saved(out), texts), strict=True):
        ids = tokenizer(f"{text} It was", return_tensors="pt")
        with torch.no_grad():
            shares = model(**ids).logits[0, -1, tokens].softmax(0).tolist()
        assert list(row["probabilities"].values()) == pytest.approx(shares, abs=1e-5)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_adapters(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0] / "out", out)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:-1]))
    path = done[0] / "other.toml"
    path.write_text((done[0] / "run.toml").read_text().replace("seed = 7", "seed = 8"))
    assert main(["run", str(path), "--quiet", "--output", str(out)]) == 2
    assert "[model] lora is {" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_on_another_base_are_refused(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(done[0] / "out" / "model", folder)
    shutil.copytree(done[0] / "net", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "texts").write_text("a film\n")

    def predicted(*arguments: object) -> str:
        code = main(["predict", str(folder), str(tmp_path / "texts"), *map(str, arguments)])
        out, error = capsys.readouterr()
        assert (code, error.count("\n")) in ((0, 0), (2, 1))
        return out if code == 0 else error

    line = predicted()
    assert "\t" in line
    shutil.move(done[0] / "net", tmp_path / "moved")
    try:
        assert "is no folder and no hub id; give it by --base" in predicted()
        assert predicted("--base", tmp_path / "moved") == line
        assert "give the run's base model by --base" in predicted("--base", tmp_path / "other")
    finally:
        shutil.move(tmp_path / "moved", done[0] / "net")
    settings = folder / "adapter_config.json"
    for content in ("{}", "[", '{"base_model_name_or_path": " "}', "[1]"):
        settings.write_text(content)
        assert "no base_model_name_or_path that names the base" in predicted()
    for name in ("x" * 5000, "a/b/c", "a--b", "nobody/nothing"):
        settings.write_text(json.dumps({"base_model_name_or_path": name}))
        assert "no folder and no hub id" in (error := predicted()) or "does not load" in error
    assert predicted("--base", done[0] / "net") == line
    tensors = load_file(folder / WEIGHTS)
    for change, message in (
        ({name: tensor[:1] for name, tensor in tensors.items()}, "has the shape (1, 32), but"),
        (dict(list(tensors.items())[1:]), "has the shape None, but"),
        ({**tensors, "more": torch.zeros(1)}, "'more' has the shape (1,), but"),
    ):
        save_file(change, folder / WEIGHTS)
        assert message in predicted("--base", done[0] / "net")
    (folder / WEIGHTS).write_bytes(b"PK")
    assert "holds no weights that can be read" in predicted("--base", done[0] / "net")


@pytest.mark.slow
def test_a_folder_of_adapters_is_no_base(done: tuple[Path, dict[str, Any]]) -> None:
    path = done[0] / "on_top.toml"
    path.write_text((done[0] / "run.toml").read_text().replace('"net"', '"out/model"'))
    with pytest.raises(InputError, match="holds adapters and no whole model; name their base"):
        configuration.load(path)


@pytest.mark.slow
def test_private_steps_of_adapters(tmp_path: Path) -> None:
    private = "[privacy]\nclip = 1.0\nnoise_multiplier = 2.0\ndelta = 0.01\n"
    summary = run(tmp_path, "lora prompt", federation=private)
    assert all(epsilon > 0 for epsilon in summary["epsilons"])
    assert digest(open_saved(tmp_path / "out").model.named_parameters()) == summary["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_found_rates_and_low_precision(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, "prompt", model=f'dtype = "{dtype}"\n{LORA}')
    text = path.read_text().replace("lr = 5e-3\nperturbations = [1, 2]", 'lr = "auto"')
    beside = "[mezo]\nlr = 1e-3\n" if dtype == "float32" else ""
    path.write_text(text.replace("rounds = 3", "rounds = 4") + beside)
    assert main(["run", str(path), "--quiet", "--output", str(tmp_path / "out")]) in (0, 4)
    summary = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["skipped"] == 0
    tensors = load_file(tmp_path / "out" / "model" / WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    journal = str(tmp_path / "out" / "journal.fspz")
    assert main(["verify", str(tmp_path / "out"), journal]) == 0
    assert digest(open_saved(tmp_path / "out").model.named_parameters()) == summary["digest"]

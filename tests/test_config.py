"""The TOML file: defaults, overrides, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from fedspzo.app import config
from fedspzo.errors import InputError

MINIMAL = """
[model]
name = "demo"
[task]
type = "prompt"
verbalizers = { good = "great", bad = "awful" }
[data]
train = "train.jsonl"
test = "test.csv"
[federation]
clients = 2
rounds = 40
[optimizer]
lr = 1e-3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "good"}\n')
    (tmp_path / "test.csv").write_text("text,label\na,good\n")
    return tmp_path


def load(folder: Path, text: str = MINIMAL) -> config.Config:
    path = folder / "mine.toml"
    path.write_text(text)
    return config.load(path)


def test_minimal_file_has_sensible_defaults(folder: Path) -> None:
    run = load(folder)
    assert run.name == "mine"
    assert run.output_dir == Path("runs/mine")
    assert config.evaluation_interval(run.federation.rounds) == 2
    assert run.data.train == folder / "train.jsonl"
    assert (run.data.text, run.data.label, run.model.dtype) == ("text", "label", "float32")
    assert not run.task.masked
    assert run.mezo is None


def test_a_file_named_config_is_called_after_its_folder(folder: Path) -> None:
    (folder / "config.toml").write_text(MINIMAL)
    assert config.load(folder / "config.toml").output_dir == Path("runs") / folder.name


def test_whole_numbers_serve_as_numbers_and_lists_as_tuples(folder: Path) -> None:
    run = load(folder, MINIMAL.replace("lr = 1e-3", "lr = 1\nperturbations = [1, 4]"))
    assert run.optimizer.lr == 1.0
    assert isinstance(run.optimizer.lr, float)
    assert run.optimizer.perturbations == (1, 4)
    assert run.optimizer.at == "auto"


def test_settings_of_each_block_are_lists(folder: Path, tmp_path: Path) -> None:
    lists = 'lr = [1, 2e-3, 4e-3]\nperturbations = [2, 0, 16]\nat = [-1, "head"]'
    run = load(folder, MINIMAL.replace("lr = 1e-3", lists))
    assert run.optimizer.lr == (1.0, 2e-3, 4e-3)
    assert all(isinstance(rate, float) for rate in run.optimizer.lr)
    assert run.optimizer.perturbations == (2, 0, 16)
    assert run.optimizer.at == (-1, "head")
    again = load(folder, config.to_toml(run))
    assert again.optimizer == run.optimizer
    assert tomllib.loads(config.to_toml(run))["optimizer"]["at"] == [-1, "head"]
    for text, at in (("at = 3", 3), ('at = "head"', "head"), ('at = ["a.b", 2]', ("a.b", 2))):
        assert load(folder, MINIMAL.replace("lr = 1e-3", text)).optimizer.at == at


def test_overrides_replace_the_files_values(folder: Path) -> None:
    run = load(folder).with_overrides(output=Path("elsewhere"), seed=7, rounds=3)
    assert run.output_dir == Path("elsewhere")
    assert (run.federation.seed, run.federation.rounds) == (7, 3)
    with pytest.raises(InputError, match="rounds"):
        load(folder).with_overrides(rounds=0)


def test_mezo_section_is_a_mezo_optimizer(folder: Path) -> None:
    run = load(folder, MINIMAL + "[mezo]\nlr = 2e-4\n")
    assert run.mezo is not None
    assert run.mezo.optimizer().estimator == "mezo"
    assert run.mezo.optimizer().lr == 2e-4


def test_resolved_toml_reads_back_as_the_same_run(folder: Path, tmp_path: Path) -> None:
    text = MINIMAL.replace("[data]", 'template = "{text}\\n\\"It\\" was \\u007f"\n[data]')
    text = text.replace('good = "great"', '"very good \\\\" = "grüße"')
    text += "[mezo]\nlr = 1e-4\n[output]\nevaluate_every = 5\n"
    first = load(folder, text)
    copy = tmp_path / "elsewhere" / "mine.toml"
    copy.parent.mkdir()
    copy.write_text(config.to_toml(first))
    second = config.load(copy)
    for section in ("model", "task", "data", "federation", "optimizer", "mezo", "output"):
        assert getattr(second, section) == getattr(first, section)
    assert tomllib.loads(copy.read_text())["federation"]["local_steps"] == 1


WRONG = [
    ("clients = 2", "clents = 2", ["[federation]", "'clents'", "did you mean 'clients'"]),
    ("[federation]", "[federaton]", ["'federaton'", "did you mean 'federation'"]),
    ("rounds = 40", "", ["[federation]", "'rounds'", "missing"]),
    ("rounds = 40", "rounds = 0", ["[federation]", "rounds", "0"]),
    ("clients = 2", 'clients = "2"', ["[federation] clients is '2'", "whole number"]),
    ("clients = 2", "clients = true", ["clients is True", "whole number"]),
    ("clients = 2", "clients = 2.0", ["clients is 2.0", "whole number"]),
    ("lr = 1e-3", "lr = -1.0", ["[optimizer]", "lr", "-1.0"]),
    ("lr = 1e-3", "lr = nan", ["[optimizer]", "lr", "nan"]),
    ("lr = 1e-3", "lr = [1e-3]", ["[optimizer] lr is (0.001,)", "one for each"]),
    ("lr = 1e-3", "lr = [1e-3, 0.0]", ["[optimizer] lr is 0.0", "above 0"]),
    (
        "lr = 1e-3",
        'lr = [1e-3, "fast"]',
        ["lr is [0.001, 'fast']", "a number or a list, each entry a number"],
    ),
    ("lr = 1e-3", "lr = 1e-3\nlr2 = 2e-3", ["unknown key 'lr2'", "did you mean 'lr'"]),
    ("lr = 1e-3", "perturbations = [1, 2.5]", ["perturbations is [1, 2.5]", "whole number"]),
    ("lr = 1e-3", "perturbations = [0, 0]", ["perturbations are (0, 0)", "at least one block"]),
    ("lr = 1e-3", "lr = [1, 2]\nperturbations = [1, 2, 3]", ["each block one of both"]),
    ("lr = 1e-3", "at = 1.5", ["[optimizer] at is 1.5", "whole number"]),
    (
        "lr = 1e-3",
        'estimator = "balanced"\nperturbations = [1, 2, 3]',
        ["perturbations are (1, 2, 3)", "two blocks"],
    ),
    ('"prompt"', '"promt"', ["[task] type is 'promt'", "did you mean 'prompt'"]),
    ('"prompt"', '"lm"', ["[task] verbalizers", "remove it"]),
    ('"train.jsonl"', '"gone.jsonl"', ["[data] train", "gone.jsonl", "no file"]),
    ('"train.jsonl"', '"train.txt"', ["[data] train", ".jsonl, .json, .csv, .tsv or .parquet"]),
    ('"train.jsonl"', "3", ["[data] train is 3", "path in quotes"]),
    ('"train.jsonl"', '"test.csv"', ["the same file as train"]),
    ('{ good = "great", bad = "awful" }', '{ good = "great" }', ["two"]),
    ('{ good = "great", bad = "awful" }', "{ good = 1, bad = 2 }", ["verbalizers", "word"]),
    ('bad = "awful"', 'bad = " "', ["verbalizers.bad"]),
    ('type = "prompt"', 'type = "prompt"\ntemplate = "It was"', ["{text} exactly once"]),
    ('type = "prompt"', 'type = "prompt"\ntemplate = "{text} {txt}"', ["{txt} is not known"]),
    ('name = "demo"', 'name = "demo"\ndtype = "bf16"', ["dtype is 'bf16'", "did you mean"]),
    ('name = "demo"', 'name = "./nowhere"', ["[model] name", "./nowhere", "no folder"]),
    ('name = "demo"', 'name = "."', ["config.json", "save_pretrained"]),
    ("[model]", "[model", ["not valid TOML", "line 2"]),
    ("[optimizer]", "[output]\nevaluate_every = 0\n[optimizer]", ["evaluate_every is 0"]),
    ("[optimizer]", "[mezo]\nlr = 0.0\n[optimizer]", ["[mezo]", "lr is 0.0"]),
    ("[optimizer]", "[privacy]\nclip = 1\n[optimizer]", ["[privacy]", "'noise_multiplier'"]),
    (
        "[optimizer]",
        "[privacy]\nclip = -1\nnoise_multiplier = 1\n[optimizer]",
        ["[privacy] clip is -1.0", "from 1e-09"],
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), WRONG, ids=[w[1][:40] for w in WRONG])
def test_mistake_is_one_line_with_key_value_and_remedy(
    folder: Path, old: str, new: str, expected: list[str]
) -> None:
    assert old in MINIMAL
    with pytest.raises(InputError) as caught:
        load(folder, MINIMAL.replace(old, new, 1))
    message = str(caught.value)
    assert "\n" not in message
    assert "mine.toml" in message
    for part in expected:
        assert part in message


def test_privacy_and_a_second_run_on_the_same_data_exclude_each_other(folder: Path) -> None:
    private = "[privacy]\nclip = 1\nnoise_multiplier = 0.5\n"
    settings = load(folder, MINIMAL + private).privacy
    assert settings is not None
    assert (settings.clip, settings.noise_multiplier, settings.delta) == (1.0, 0.5, 1e-5)
    with pytest.raises(InputError, match=r"\[optimizer\] lr is 'auto'.*not private"):
        load(folder, MINIMAL.replace("lr = 1e-3", 'lr = "auto"') + private)
    with pytest.raises(InputError, match=r"which \[privacy\] would not count; remove \[mezo\]"):
        load(folder, MINIMAL + private + "[mezo]\nlr = 1e-3\n")


def test_dirichlet_needs_labels(folder: Path) -> None:
    text = MINIMAL.replace("rounds = 40", 'rounds = 40\npartition = "dirichlet"')
    text = text.replace('"prompt"', '"lm"').replace(
        'verbalizers = { good = "great", bad = "awful" }', ""
    )
    with pytest.raises(InputError, match="partition is 'dirichlet', which needs labels"):
        load(folder, text)


def test_file_that_is_absent_a_folder_or_not_utf8(folder: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        config.load(folder / "absent.toml")
    with pytest.raises(InputError, match="cannot be read"):
        config.load(folder)
    (folder / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(InputError, match="byte 8 is not UTF-8"):
        config.load(folder / "latin.toml")


def test_model_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "net").mkdir()
    (folder / "net" / "config.json").write_text("{}")
    (folder / "net" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no \.safetensors file"):
        load(folder, MINIMAL.replace('"demo"', '"net"'))
    (folder / "net" / "model.safetensors").write_bytes(b"")
    assert load(folder, MINIMAL.replace('"demo"', '"net"')).model.name == str(folder / "net")


def test_hub_ids_stay_as_they_are(folder: Path) -> None:
    run = load(folder, MINIMAL.replace('"demo"', '"facebook/opt-125m"'))
    assert run.model.name == "facebook/opt-125m"


def test_every_key_is_documented() -> None:
    sections = (Path(__file__).parents[1] / "docs" / "cli.md").read_text().split("\n### ")[1:]
    documented = {text.split("`")[1].strip("[]"): text for text in sections}
    assert set(documented) == set(config.SECTIONS)
    for name, (section, _) in config.SECTIONS.items():
        for field in dataclasses.fields(section):
            assert f"`{field.name}`" in documented[name], f"[{name}] {field.name}"

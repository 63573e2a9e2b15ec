"""A checkpoint's classification head keeps its labels, and data labels map to them by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from fedspzo.app import models
from fedspzo.app.config import Config, load
from fedspzo.app.data import read_splits
from fedspzo.app.head_labels import head_names
from fedspzo.app.pretrained import pretrained
from fedspzo.errors import InputError

WORDS = ["[PAD]", "[UNK]", "a", "fine", "bad", "film"]
CONFIG = """
[model]
name = "net"
[task]
type = "classification"
{task}
[data]
train = "train.csv"
test = "test.csv"
[federation]
clients = 2
rounds = 1
"""


def write(
    folder: Path, kind: str, task: str = "", labels: tuple[str, ...] = ("bad", "good")
) -> None:
    """Write a config, its data and its base: with a "head" that has these labels, or "headless"."""
    torch.set_num_threads(1)
    words = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(tokenizer_models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder / "net")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    names = {} if kind == "headless" else {"id2label": dict(enumerate(labels))}
    config = BertConfig(vocab_size=len(WORDS), num_attention_heads=2, **size, **names)
    torch.manual_seed(3)
    made = BertModel if kind == "headless" else BertForSequenceClassification
    made(config).save_pretrained(folder / "net")
    (folder / "train.csv").write_text("text,label\na fine film,good\na bad film,bad\n")
    (folder / "test.csv").write_text("text,label\nfine film,good\n")
    (folder / "run.toml").write_text(CONFIG.format(task=task))


def config(folder: Path) -> Config:
    return load(folder / "run.toml")


def loaded(folder: Path):  # type: ignore[no-untyped-def]
    run = config(folder)
    return models.load(run, read_splits(run.data, run.task))


def test_a_head_keeps_its_weights_and_its_labels(tmp_path: Path) -> None:
    # sorted, the labels of the data would stand the other way round
    write(tmp_path, "head", labels=("good", "bad", "mixed"))
    model, task, recipe = loaded(tmp_path)
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "net")
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    assert model.config.id2label == {0: "good", 1: "bad", 2: "mixed"}
    assert task.labels == {"bad": 1, "good": 0}
    again, _ = pretrained(str(tmp_path / "net"), recipe)
    assert all(map(torch.equal, again.parameters(), model.parameters()))


@pytest.mark.parametrize(
    ("labels", "task", "numbers"),
    [
        (("NEG", "POS"), '[task.labels]\ngood = "POS"\nbad = "NEG"', {"bad": 0, "good": 1}),
        (("POS", "bad"), '[task.labels]\ngood = "POS"', {"bad": 1, "good": 0}),
    ],
)
def test_other_names_are_mapped(
    tmp_path: Path, labels: tuple[str, ...], task: str, numbers: dict[str, int]
) -> None:
    write(tmp_path, "head", task, labels)
    model, made, _ = loaded(tmp_path)
    assert made.labels == numbers
    assert tuple(model.config.id2label.values()) == labels


@pytest.mark.parametrize(
    ("labels", "task", "parts"),
    [
        (
            ("NEG", "POS"),
            "",
            ["the labels 'bad', 'good'", "head 'NEG', 'POS'", "bad = 'NEG'", "new_head = true"],
        ),
        (("bad",), "", ["'good' is none of these"]),
        (("LABEL_0", "LABEL_1"), "", ["head 'LABEL_0', 'LABEL_1'"]),
        (("bad", "good"), '[task.labels]\ngood = "bad"', ["two labels of the data the same"]),
        (("bad", "good"), '[task.labels]\ngood = "fine"', ["'fine' is none of these"]),
    ],
)
def test_labels_that_do_not_fit_are_one_line(
    tmp_path: Path, labels: tuple[str, ...], task: str, parts: list[str]
) -> None:
    write(tmp_path, "head", task, labels)
    with pytest.raises(InputError) as caught:
        loaded(tmp_path)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_without_names_is_addressed_by_number() -> None:
    head = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert head_names(("0", "2"), head, {}) == {"0": "LABEL_0", "2": "LABEL_2"}
    given = {"good": "1", "bad": "LABEL_0"}
    assert head_names(("bad", "good"), head, given) == {"bad": "LABEL_0", "good": "LABEL_1"}
    with pytest.raises(InputError, match="'3' is none of these"):
        head_names(("0", "3"), head, {})


@pytest.mark.parametrize("labels", [("bad", "good"), ("a", "b", "c")])
def test_a_new_head_replaces_the_checkpoints_own(tmp_path: Path, labels: tuple[str, ...]) -> None:
    write(tmp_path, "head", "new_head = true", labels)
    model, task, recipe = loaded(tmp_path)
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "net")
    assert model.classifier.weight.shape == (2, 16)
    assert not torch.equal(model.classifier.weight, saved.classifier.weight[:2])
    body, kept = dict(model.bert.named_parameters()), dict(saved.bert.named_parameters())
    assert all(torch.equal(kept[name], weight) for name, weight in body.items())
    assert task.labels == {"bad": 0, "good": 1}
    again, _ = pretrained(str(tmp_path / "net"), recipe)
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_a_checkpoint_without_a_head_gets_one_of_the_datas_labels(tmp_path: Path) -> None:
    write(tmp_path, "headless")
    model, _, recipe = loaded(tmp_path)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert not recipe.new_head
    (tmp_path / "run.toml").write_text(CONFIG.format(task='[task.labels]\ngood = "fine"'))
    with pytest.raises(InputError, match="has no classification head"):
        loaded(tmp_path)


def test_a_head_that_config_and_weights_do_not_agree_on_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, "head")
    path = tmp_path / "net" / "config.json"
    text = path.read_text()
    path.write_text(text.replace("BertForSequenceClassification", "BertModel"))
    with pytest.raises(InputError, match=r"config\.json does not say so"):
        loaded(tmp_path)
    (tmp_path / "headless").mkdir()
    write(tmp_path / "headless", "headless")
    path = tmp_path / "headless" / "net" / "config.json"
    path.write_text(path.read_text().replace("BertModel", "BertForSequenceClassification"))
    with pytest.raises(InputError) as caught:  # LABEL_0, LABEL_1: the config has no names
        loaded(tmp_path / "headless")
    assert "'LABEL_0', 'LABEL_1'" in str(caught.value)

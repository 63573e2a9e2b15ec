"""The embedded model and the data that this project writes for it and for the examples."""

from __future__ import annotations

import csv
import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedspzo.app.config import load
from fedspzo.app.data import Example
from fedspzo.app.prompts import PromptClassification
from fedspzo.demo import build, corpus

pytestmark = pytest.mark.slow

DEMO = Path(corpus.__file__).parent
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
GENERATED = ["sentiment", "own_labels"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pretraining():
    return list(corpus.pretraining(build.DOCUMENTS))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file]


def zero_shot(config_path: Path) -> float:
    config = load(config_path)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", local_files_only=True)
    task = PromptClassification(
        tokenizer, config.task.template, config.task.verbalizers, config.data.max_length
    )
    examples = [Example(text=r["text"], label=r["label"]) for r in rows_of(config.data.test)]
    return task.evaluate(model, task.encode(examples))["accuracy"]


def test_model_is_small_safe_and_complete():
    files = {file.name: file.stat().st_size for file in (DEMO / "model").iterdir()}
    assert sum(files.values()) <= 3e6
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"} <= set(
        files
    )
    assert not [name for name in files if Path(name).suffix not in {".json", ".safetensors"}]


def test_model_loads_offline_in_float32(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model", local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.num_hidden_layers == 8
    ids = tokenizer("The soup was cold. It was great").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]).strip() == "the soup was cold. it was great"


def test_model_has_learned_its_language():
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model", local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", local_files_only=True)
    writer = corpus.Writer(7)
    documents = [make() for _ in range(50) for make in (writer.reviewed, writer.everyday)]
    nats = tokens = 0.0
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([tokenizer(document).input_ids])
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.numel() - 1)
            tokens += ids.numel() - 1
    # A uniform guess costs log 2048 = 7.6 nats, the corpus's entropy is about 1.2 a token.
    assert nats / tokens < 1.6


def test_zero_shot_accuracy_leaves_room_to_learn():
    assert 0.55 <= zero_shot(DEMO / "config.toml") <= 0.75


@pytest.mark.parametrize("name", GENERATED)
def test_examples_leave_room_to_learn(name):
    assert 0.2 <= zero_shot(EXAMPLES / name / "config.toml") <= 0.8


def test_data_files_are_what_the_grammar_gives():
    for name, content in corpus.data_files().items():
        folder, _, file = name.partition("/")
        path = DEMO / "data" / file if folder == "demo" else EXAMPLES / folder / file
        assert path.read_bytes() == content.encode(), f"{name}: run python -m fedspzo.demo.corpus"


def test_corpus_follows_from_its_seed(pretraining):
    assert list(corpus.pretraining(300, seed=1)) == list(corpus.pretraining(300, seed=1))
    assert list(corpus.pretraining(300, seed=1)) != list(corpus.pretraining(300, seed=2))
    assert len(pretraining) == build.DOCUMENTS


def test_demo_test_rows_were_never_seen(pretraining):
    train, test = corpus.demo_data()
    assert len(train) >= 1000
    assert len(test) >= 500
    assert not {row["text"].lower() for row in train} & {row["text"].lower() for row in test}
    seen = "\n".join(pretraining).lower()
    assert [row["text"] for row in test if row["text"].lower() in seen] == []


def test_pretraining_holds_no_row_of_an_example_as_sentences(pretraining):
    banned = corpus.held_out()
    assert all(banned.isdisjoint(corpus.passages(document)) for document in pretraining)


def test_labels_are_balanced_and_no_word_gives_them_away():
    train, test = corpus.demo_data()
    for rows in (train, test):
        counts = Counter(row["label"] for row in rows)
        assert abs(counts["positive"] - counts["negative"]) <= 0.1 * len(rows)
    words = Counter(
        (word, row["label"]) for row in train for word in set(row["text"].lower().split())
    )
    for word in {word for word, _ in words}:
        with_word = words[word, "positive"] + words[word, "negative"]
        # The best rule "this label if the word is there, else the other".
        right = words[word, "positive"] + len(train) / 2 - words[word, "negative"]
        right = max(right, len(train) - right)
        assert right <= 0.6 * len(train), (word, with_word)


@pytest.mark.parametrize("name", [*GENERATED, "minilm"])
def test_examples_hold_disjoint_rows_with_known_labels(name):
    settings = tomllib.loads((EXAMPLES / name / "config.toml").read_text(encoding="utf-8"))
    train, test = (rows_of(EXAMPLES / name / settings["data"][k]) for k in ("train", "test"))
    assert not {row["text"].lower() for row in train} & {row["text"].lower() for row in test}
    labels = {row["label"] for row in train}
    assert {row["label"] for row in test} == labels
    assert set(settings["task"].get("verbalizers", labels)) == labels


def test_real_example_repeats_no_sentence():
    rows = [row for k in ("train", "test") for row in rows_of(EXAMPLES / "minilm" / f"{k}.jsonl")]
    assert len(rows) >= 400
    assert len({row["text"] for row in rows}) == len(rows)


def test_build_makes_a_loadable_model(tmp_path):
    loss = build.build(tmp_path / "model", documents=256)
    assert loss < 8.0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

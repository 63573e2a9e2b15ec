"""Where data come from: a file for each client, folders of texts, saved datasets, the hub."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_toys import HEADLESS, PROMPT, splits

from fedspzo.app.config import DataConfig
from fedspzo.app.data import Example, read_splits
from fedspzo.app.sources import HubData
from fedspzo.errors import InputError


def test_clients_have_files_of_their_own(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\n", "q,good\n")
    folder = tmp_path / "clients"
    folder.mkdir()
    with pytest.raises(InputError, match=r"holds no \.jsonl, .* file, one a client, and no"):
        read_splits(replace(data, train=folder), PROMPT)
    (folder / "ann.csv").write_text("text,label\na,good\nb,bad\n")
    (folder / "bob.jsonl").write_text('{"text": "c", "label": "bad"}\n')
    (folder / "notes.md").write_text("mine")
    found = read_splits(replace(data, train=folder), PROMPT)
    assert found.train == [
        Example("a", "good", "ann"),
        Example("b", "bad", "ann"),
        Example("c", "bad", "bob"),
    ]
    assert found.owners == ("ann", "bob")
    before = found.hashes["train"]
    (folder / "bob.jsonl").rename(folder / "eve.jsonl")
    assert read_splits(replace(data, train=folder), PROMPT).hashes["train"] != before
    (folder / "ann.jsonl").write_text('{"text": "c", "label": "bad"}\n')
    with pytest.raises(InputError, match="has two files of client 'ann'"):
        read_splits(replace(data, train=folder), PROMPT)
    with pytest.raises(ValueError, match="train is a folder with a file for each client; remove"):
        replace(data, train=folder, client="who")


def texts_by_label(folder: Path) -> Path:
    for name, text in (("good/a", "fine"), ("good/b", "great\n"), ("bad/a", "dull")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text)
    (folder / "notes.txt").write_text("no label")
    return folder


def test_a_folder_of_texts_by_label(tmp_path: Path) -> None:
    folder = texts_by_label(tmp_path / "texts")
    data = replace(splits(tmp_path, "x,good\n", "q,good\n"), train=folder)
    found = read_splits(data, PROMPT)
    assert found.train == [
        Example("dull", "bad"),
        Example("fine", "good"),
        Example("great", "good"),
    ]
    assert not found.owners
    assert not data.owned
    before = found.hashes["train"]
    (folder / "bad" / "a.txt").write_text("dull!")
    assert read_splits(data, PROMPT).hashes["train"] != before
    moved = read_splits(data, PROMPT).hashes["train"]
    (folder / "bad" / "a.txt").rename(folder / "good" / "0.txt")
    assert read_splits(replace(data, text="text"), HEADLESS).hashes["train"] != moved
    (folder / "good" / "0.txt").rename(folder / "bad" / "a.txt")
    turned = read_splits(replace(data, test=folder, train=data.test), HEADLESS)
    assert [one.text for one in turned.test] == ["dull!", "fine", "great"]
    (folder / "odd").mkdir()
    (folder / "odd" / "c.txt").write_text("hm")
    with pytest.raises(InputError, match=r"texts, file odd/c\.txt: 'label' is 'odd'; give it"):
        read_splits(data, PROMPT)
    (folder / "odd" / "c.txt").write_text(" ")
    with pytest.raises(InputError, match=r"texts, file odd/c\.txt: 'text' is ''; give"):
        read_splits(data, PROMPT)
    for file in folder.glob("*/*.txt"):
        file.unlink()
    with pytest.raises(InputError, match=r"its folders hold no \.txt files; give a folder of such"):
        read_splits(data, PROMPT)


def a_dataset() -> datasets.Dataset:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    return datasets.Dataset.from_dict(
        {"text": ["x", "y", "z"], "label": [1, 0, 1]}, features=features
    )


def test_a_dataset_that_was_saved(tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=a_dataset(), test=a_dataset().select([2]))
    both.save_to_disk(str(tmp_path / "saved"))
    data = DataConfig(train=tmp_path / "saved", test=tmp_path / "saved")
    found = read_splits(data, PROMPT)
    assert found.train == [Example("x", "good"), Example("y", "bad"), Example("z", "good")]
    assert found.test == [Example("z", "good")]  # a class has its name, and a key its split
    assert found.hashes["train"] != found.hashes["test"]
    assert read_splits(data, PROMPT).hashes == found.hashes
    one = DataConfig(train=tmp_path / "saved" / "train", test_share=0.4)
    assert len(read_splits(one, PROMPT).test) == 1
    with pytest.raises(InputError, match="has no split 'validation', but test, train; name the"):
        read_splits(replace(data, validation=tmp_path / "saved"), PROMPT)
    with pytest.raises(
        InputError, match=r"saved, row 1: field 'words' is missing \(fields: 'text'"
    ):
        read_splits(replace(data, text="words"), PROMPT)


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        if name == "a/secret":
            raise ConnectionError("nobody\nanswers")
        return a_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = DataConfig(
        train=HubData.parse("hub:a/films"), test=HubData.parse("hub:a/films:plain#train[:2]")
    )
    assert len(read_splits(data, PROMPT).test) == 3
    assert asked == [("a/films", None, "train"), ("a/films", "plain", "train[:2]")]
    lost = replace(data, train=HubData.parse("hub:a/secret"))
    with pytest.raises(InputError, match=r"a/secret: datasets cannot load it \(nobody answers\)"):
        read_splits(lost, PROMPT)
    with pytest.raises(ValueError, match="test is 'hub:a/films#train', the same file as train"):
        replace(data, test=HubData.parse("hub:a/films#train"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the library datasets; .*fedspzo\[datasets\]"):
        read_splits(data, PROMPT)


WRONG = [
    ({"test": None}, "key 'test' is missing; add it, or test_share, the share of train"),
    ({"test_share": 0.5}, r"test_share is 0\.5, but test is '.*test\.csv'; remove one of them"),
    ({"test": None, "test_share": 1.0}, r"test_share is 1\.0; give a share between 0 and 1"),
    (
        {"train": Path("a.xlsx")},
        r"train is 'a\.xlsx'; give a \.jsonl, .* or \.parquet file, a",
    ),
    ({"test": Path("a.gz")}, r"test is 'a\.gz'; give a"),
    ({"test": Path("a.json")}, r"test is 'a\.json', which is no file; correct the path"),
    ({"test": Path()}, "test is '.', a folder with neither texts by label nor a saved dataset"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_cannot_be_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    data = splits(tmp_path, "x,good\n", "q,good\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        replace(data, **changes)

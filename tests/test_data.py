"""Data files of every format: what is read, and one line naming file and row for what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from fedspzo.app.config import DataConfig, TaskConfig
from fedspzo.app.data import Example, check_repeated, read, read_splits
from fedspzo.app.model_files import content_hash
from fedspzo.app.sources import HubData
from fedspzo.app.waiting import Count
from fedspzo.errors import InputError

CSV = b"text,label\nx,good\ny,bad\n"


def parquet(columns: dict[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


HEADLESS = TaskConfig(type="lm")
PROMPT = TaskConfig(type="prompt", verbalizers={"good": "great", "bad": "awful"})


def test_jsonl_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "one\\u2028line", "label": "good", "more": 1}\r\n'
        b'\n{"text": "two\xe2\x80\xa8", "label": 1}\n{"text": "three", "label": true}'
    )
    assert read(path, "text", "label") == [
        Example("one\u2028line", "good"),
        Example("two\u2028", "1"),
        Example("three", "true"),
    ]
    assert read(path, "text", None)[0] == Example("one\u2028line")


def test_csv_rows_with_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'label,sentence\r\ngood,"a ""b"", c"\r\n\r\nbad,"two\nlines\xe2\x80\xa8"\r\ngood,plain'
    )
    assert read(path, "sentence", "label") == [
        Example('a "b", c', "good"),
        Example("two\nlines\u2028", "bad"),
        Example("plain", "good"),
    ]


BROKEN = [
    ("a.jsonl", b'{"text": "x", "label": "good"}\n{"text": "x"', ["line 2", "not valid JSON"]),
    ("a.jsonl", b'{"text": "x", "label": "good"}\n[1]', ["line 2", "'[1]'", "no JSON object"]),
    ("a.jsonl", b"[" * 100_000, ["line 1", "not valid JSON"]),
    ("a.jsonl", b'\n{"txt": "x"}', ["line 2", "'text' is missing", "'txt'", "[data] text"]),
    ("a.jsonl", b'{"text": "x"}', ["line 1", "'label' is missing", "[data] label"]),
    ("a.jsonl", b'{"text": 3, "label": "good"}', ["line 1", "'text' is 3"]),
    ("a.jsonl", b'{"text": " ", "label": "good"}', ["line 1", "non-empty"]),
    ("a.jsonl", b'{"text": "\\ud800", "label": "good"}', ["line 1", "surrogate"]),
    ("a.jsonl", b'{"text": "a", "label": "\\ud800"}', ["line 1", "'label'", "surrogate"]),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", ["line 1", "not valid JSON"]),
    ("a.jsonl", b'{"text": "x", "label": null}', ["line 1", "'label' is None"]),
    ("a.jsonl", b'{"text": "x", "label": 0.5}', ["line 1", "'label' is 0.5"]),
    ("a.jsonl", b'{"text": "x", "label": "fine"}', ["line 1", "'label' is 'fine'", "give a word"]),
    ("a.jsonl", b'{"text": "x", "label": "good"}\n\xff', ["line 2", "0xff is not UTF-8"]),
    ("a.jsonl", b"\n\n", ["holds no examples"]),
    ("a.csv", b"", ["holds no examples"]),
    ("a.csv", b"text,label\n", ["holds no examples"]),
    ("a.csv", b"text,label\nx,good\na,b,good\n", ["line 3", "3 cells for 2 columns"]),
    ("a.csv", b'text,label\n"x\ny",good\n"x,good\n', ["line 4", "not valid CSV"]),
    ("a.csv", b'text,label\n"x\ny",good\nz,fine\n', ["line 4", "'label' is 'fine'"]),
    ("a.csv", b"text,text\nx,good\n", ["line 1", "column occurs twice"]),
    ("a.csv", b"text;label\nx;good;more\n", ["line 2", "3 cells for 2 columns", "hold ';'"]),
    ("a.tsv", b"text\tlabel\nx\tgood\tmore\n", ["line 2", "3 cells for 2", "that hold tabs"]),
    ("a.csv", b"\x1f\x8b\x08\0abc", ["is compressed by gzip, and damaged", "pack it anew"]),
    ("a.jsonl", b"\x1f\x8b\x08\0abc", ["is compressed by gzip, and damaged"]),
    ("a.csv", gzip.compress(CSV)[:-9], ["is compressed by gzip, and damaged"]),
    ("a.csv.gz", gzip.compress(b"text,label\nx,fine\n"), ["line 2", "'label' is 'fine'"]),
    ("a.csv", b"PK\x03\x04abc", ["is a zip archive, as Excel writes"]),
    ("a.csv", b"PAR1abc", ["is no Parquet file that pyarrow reads", "convert it to JSON Lines"]),
    ("a.parquet", b"text,label\n", ["is no Parquet file that pyarrow reads"]),
    ("a.csv", CSV.decode().encode("utf-16"), ["is UTF-16 text; set [data] encoding = 'utf-16'"]),
    ("a.csv", b"text,label\ncaf\xe9,good\n", ["line 2", "0xe9", "encoding = 'latin-1'"]),
    ("a.json", b'[{"text": "x", "label": "fine"}]', ["row 1", "'label' is 'fine'"]),
    ("a.json", b'[{"text": "x"}, 5]', ["row 1: field 'label' is missing"]),
    ("a.json", b"[5]", ["row 1: 5 is no JSON object"]),
    ("a.json", b'[\n{"text": "x",\n]', ["line 3", "not valid JSON", "write an array of objects"]),
    ("a.json", b'[{"text": "", "label": "good"}]', ["a.json, row 1: 'text' is ''"]),
    ("a.jsonl", b'{\n"text": ["x"]\n}', ["line 1", "is the file one JSON document?"]),
    (
        "a.jsonl",
        b'{"text": {"0": "secret", "1": "texts"}, "label": {"0": "good", "1": "bad"}}',
        ["line 1", "'text' holds 2 values, a whole column; write one object a line"],
    ),
    ("a.jsonl", b'{"text": ["x", "y"], "label": "good"}', ["line 1", "'text' holds 2 values"]),
    ("a.jsonl", b'{"text": "x", "label": true}', ["'label' is True", "known are 'good', 'bad'"]),
    ("a.csv", b"text,label\nx,TRUE\n", ["'label' is 'TRUE'", "known are 'good', 'bad'"]),
    (
        "a.jsonl",
        b'{"text": "x", "label": [1]}',
        ["'label' is [1]", "a text, a number or a boolean"],
    ),
    ("a.jsonl", b'{"text": "x", "label": NaN}', ["'label' is nan", "a text, a number"]),
    (
        "a.csv",
        b"text,label\nx,good\n,bad\ny,\n,\n \t,good\nz,bad\n",
        ["lines 3, 4, 6: 'text' is '' in the first of them", "[data] on_bad_row = 'skip'"],
    ),
    (
        "a.jsonl",
        b'{"text": null, "label": "good"}\n' * 20,
        ["lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 8 more: 'text' is None"],
    ),
]
"""Files that are refused: their names, their bytes, and parts of the line."""

READ = [
    ("a.csv", b"text,label\n" + b"x" * 200_000 + b",good\n", ["good"]),
    ("a.csv", b"text,label,,\nx,good,,\ny,bad,,,,\n", ["good", "bad"]),
    ("A.CSV", b"text,label\nx,good\n", ["good"]),
    ("A.JSONL", b'{"text": "x", "label": "good"}', ["good"]),
    ("a.csv", b"text,label\nx,True\ny,false\nz,TRUE\n", ["true", "false", "true"]),
    (
        "a.jsonl",
        b'{"text": "x", "label": true}\n{"text": "x", "label": "False"}',
        ["true", "false"],
    ),
    ("a.csv", b"text,label\nx,1.0\ny,2\nz,0.5\n", ["1", "2", "0.5"]),
    ("a.jsonl", b'{"text": "x", "label": 1.0}\n{"text": "x", "label": 0.5}', ["1", "0.5"]),
    ("a.jsonl", b'{"text": "x", "label": "good", "words": ["a", "b"]}', ["good"]),
    ("a.csv", b"text,label\n\nx,good\n,,\n", ["good"]),
    ("a.csv", b"\xef\xbb\xbf" + CSV, ["good", "bad"]),
    ("a.csv", b'text;label\n"a; b, c";good\nd, e;bad\n', ["good", "bad"]),
    ("a.csv", b"text\tlabel\na, b\tgood\nc\tbad\n", ["good", "bad"]),
    ("a.csv", b"text|label\na, b|good\n", ["good"]),
    ("a.tsv", b'text\tlabel\n"Great," they say\tgood\nsay "no\tbad\n', ["good", "bad"]),
    ("a.tsv", b'text\tlabel\n"two\nlines"\tgood\nx\tbad\n', ["good", "bad"]),
    ("a.tsv", b"text;label\nx;good\n", ["good"]),
    ("a.json", b'[{"text": "x", "label": "good"},\n {"text": "y", "label": 1}]', ["good", "1"]),
    ("a.json", b'{"text": "x", "label": "good"}\n{"text": "y", "label": "bad"}', ["good", "bad"]),
    ("a.jsonl", b'[\n{"text": "x", "label": "good"}\n]', ["good"]),
    ("a.csv.gz", gzip.compress(CSV), ["good", "bad"]),
    ("a.csv", gzip.compress(CSV), ["good", "bad"]),  # whatever it is called
    ("a.JSONL.GZ", b'{"text": "x", "label": "good"}', ["good"]),
    ("a.json.gz", gzip.compress(b'[{"text": "x", "label": "good"}]'), ["good"]),
    ("a.parquet", parquet({"text": ["x", "y"], "label": ["good", "bad"]}), ["good", "bad"]),
    ("a.parquet", parquet({"n": [1], "label": [True], "text": ["x"]}), ["true"]),
    ("a.csv", parquet({"text": ["x", "y"], "label": [1.0, 2.0]}), ["1", "2"]),
    ("a.parquet.gz", gzip.compress(parquet({"text": ["x"], "label": [7]})), ["7"]),
]
"""Files that are read: their names, their bytes, and the labels."""


@pytest.mark.parametrize(("name", "content", "labels"), READ)
def test_files_as_people_have_them(
    tmp_path: Path, name: str, content: bytes, labels: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert [example.label for example in read(path, "text", "label")] == labels


@pytest.mark.parametrize(
    "known", [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("true", "false")]
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_label_is_known_by_its_value(tmp_path: Path, known: tuple[str, str], ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    truth = known[0].lower() == "true"
    for value in ("true", "TRUE", True) if truth else ("1", "1.0", 1, 1.0):
        row = (
            f"text,label\nx,{value}"
            if ending == "csv"
            else json.dumps({"text": "x", "label": value})
        )
        path.write_text(row)
        assert read(path, "text", "label", known)[0].label == known[0]


def test_a_message_does_not_repeat_a_page_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for row in (
        {"text": "x", "label": "y" * 9999},
        {"text": {str(n): "secret " * 9 for n in range(999)}, "label": "good"},
        {"x" * 9999: "a"},
        {"text": 10**400, "label": "good"},
        ["secret " * 999],
    ):
        path.write_text(json.dumps(row))
        with pytest.raises(InputError) as caught:
            read(path, "text", "label", ("good", "bad"), "give a word")
        assert len(str(caught.value)) < 400 + len(str(path))
        assert str(caught.value).count("secret") < 10


def test_rows_without_text_or_label_are_skipped_and_counted(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\n,bad\ny,bad\nz,\n", "q,good\n")
    with pytest.raises(InputError, match="lines 3, 5"):
        read_splits(data, PROMPT)
    found = read_splits(replace(data, on_bad_row="skip"), PROMPT)
    assert [example.text for example in found.train] == ["x", "y"]
    assert found.skipped == {"train": 2, "test": 0}


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


def encoded(encoding: str, text: str = "café", separator: str = ",") -> bytes:
    rows = (("text", "label"), (text, "good"), ("y", "bad"))
    return "".join(f"{separator.join(row)}\n" for row in rows).encode(encoding)


ENCODED: list[tuple[str, bytes, str]] = [
    ("utf-8", encoded("utf-8"), "café"),
    ("utf-8", encoded("utf-8-sig"), "café"),
    ("utf-16", encoded("utf-16"), "café"),
    ("utf-16", b"\xfe\xff" + encoded("utf-16-be", separator="\t"), "café"),
    ("latin-1", encoded("latin-1", separator=";"), "café"),
    ("windows-1252", encoded("cp1252", "“café”"), "“café”"),
]

OTHERWISE_ENCODED: list[tuple[str, bytes, str]] = [
    ("utf-16", encoded("utf-16")[:-1], "byte .*: byte 0x0a is not UTF-16; correct .* encoding"),
    ("windows-1252", b"text\n\x81\n", "line 2: byte 0x81 is not WINDOWS-1252; correct"),
    ("latin-1", encoded("utf-16"), r"is UTF-16 text; set \[data\] encoding = 'utf-16'"),
]


def declared(tmp_path: Path, encoding: Any, content: bytes) -> list[str]:
    (tmp_path / "a.csv").write_bytes(content)
    data = DataConfig(train=tmp_path / "a.csv", test_share=0.5, encoding=encoding)
    found = read_splits(data, HEADLESS)
    return [one.text for one in (*found.train, *found.test)]


@pytest.mark.parametrize(("encoding", "content", "text"), ENCODED)
def test_encodings_that_are_declared(
    tmp_path: Path, encoding: str, content: bytes, text: str
) -> None:
    assert sorted(declared(tmp_path, encoding, content)) == sorted([text, "y"])


@pytest.mark.parametrize(("encoding", "content", "message"), OTHERWISE_ENCODED)
def test_another_encoding_than_declared_is_named(
    tmp_path: Path, encoding: str, content: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        declared(tmp_path, encoding, content)


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


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet({"text": ["x"]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"which needs pyarrow; .*pip install 'fedspzo\[data\]'"):
        read(tmp_path / "a.parquet", "text", None)


def one_file(tmp_path: Path, rows: str, share: float) -> DataConfig:
    (tmp_path / "all.csv").write_text("text,label,who\n" + rows)
    return DataConfig(train=tmp_path / "all.csv", test_share=share)


def test_one_file_is_split_by_seed_and_no_text_is_on_both_sides(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [f"{draw.randrange(60)},{draw.choice(['good', 'bad'])},a" for _ in range(300)]
    data = one_file(tmp_path, "".join(f"{row}\n" for row in rows), 0.25)
    drawn = set()
    for seed in range(5):
        found = read_splits(data, PROMPT, seed)
        train, test = ({one.text for one in part} for part in (found.train, found.test))
        assert not train & test
        assert len(train | test) == 60
        assert 13 <= len(test) <= 17
        assert len(found.train) + len(found.test) == 300
        assert {one.label for one in found.test} == {"good", "bad"}
        assert found.repeated == 0
        assert found == read_splits(data, PROMPT, seed)
        drawn.add(frozenset(test))
    assert len(drawn) == 5
    both = read_splits(replace(data, validation=0.5), PROMPT)
    assert {one.text for one in both.test} == {one.text for one in read_splits(data, PROMPT).test}
    assert not {one.text for one in both.test} & {one.text for one in both.validation}


@pytest.mark.parametrize(
    ("rows", "share", "message"),
    [
        (
            "x,good,a\nx,bad,a\n",
            0.5,
            r"test_share is 0\.5, a share of its 1 texts that leaves none",
        ),
        ("x,good,a\ny,bad,a\n", 0.2, "a share of its 2 texts that leaves none to test by"),
        ("x,good,a\ny,good,b\nz,bad,a\n", 0.4, r"leaves client '[ab]' no examples; give a smaller"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(
    tmp_path: Path, rows: str, share: float, message: str
) -> None:
    data = replace(one_file(tmp_path, rows, share), client="who")
    faults = []
    for seed in range(8):
        try:
            read_splits(data, PROMPT, seed)
        except InputError as error:
            faults.append(str(error))
    assert faults
    assert all(re.search(message, fault) for fault in faults)


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


def test_rows_are_counted_while_they_are_read(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\ny,bad\n", "q,good\n")
    count = Count()
    read_splits(data, PROMPT, 0, count)
    assert str(count) == "3 rows"


def test_a_field_says_whose_a_row_is(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\n", "q,good\n")
    data.train.write_text("text,label,who\na,good,7\nb,bad,ann\nc,bad,7\n")
    found = read_splits(replace(data, client="who"), PROMPT)
    assert [example.client for example in found.train] == ["7", "ann", "7"]
    assert found.owners == ("7", "ann")
    assert not read_splits(data, PROMPT).owners
    data.train.write_text("text,label,who\na,good,\nb,bad,ann\n")
    with pytest.raises(InputError, match="line 2: 'who' is ''; give a client's name"):
        read_splits(replace(data, client="who"), PROMPT)
    data.train.write_text("text,label\na,good\nb,bad\n")
    with pytest.raises(InputError, match=r"field 'who' is missing .*as \[data\] client"):
        read_splits(replace(data, client="who"), PROMPT)


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN)
def test_broken_row_names_file_line_and_remedy(
    tmp_path: Path, name: str, content: bytes, expected: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path, "text", "label", ("good", "bad"), "give a word")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for part in expected:
        assert part in message


def splits(tmp_path: Path, train: str, test: str) -> DataConfig:
    (tmp_path / "train.csv").write_text("text,label\n" + train)
    (tmp_path / "test.csv").write_text("text,label\n" + test)
    return DataConfig(train=tmp_path / "train.csv", test=tmp_path / "test.csv")


def test_prompt_labels_keep_the_verbalizers_order(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,bad\ny,good\n", "z,good\n")
    assert read_splits(data, PROMPT).labels == ("good", "bad")


def test_head_labels_are_the_training_labels_sorted(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,c\ny,a\nz,b\n", "z,b\n")
    assert read_splits(data, TaskConfig(type="classification")).labels == ("a", "b", "c")


def test_language_modelling_needs_no_labels(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\nx\n")
    (tmp_path / "test.csv").write_text("text\ny\n")
    data = DataConfig(train=tmp_path / "train.csv", test=tmp_path / "test.csv")
    assert read_splits(data, TaskConfig(type="lm")).train == [Example("x")]


def test_labels_and_verbalizers_must_match(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3: 'label' is 'odd'; .*\[task\.verbalizers\]"):
        read_splits(splits(tmp_path, "x,good\ny,odd\n", "z,good\n"), PROMPT)
    with pytest.raises(InputError, match="no row has the label 'bad'"):
        read_splits(splits(tmp_path, "x,good\n", "z,good\n"), PROMPT)


def test_head_needs_two_labels_and_no_new_ones_in_the_test_file(tmp_path: Path) -> None:
    head = TaskConfig(type="classification")
    with pytest.raises(InputError, match="every row has the label 'a'"):
        read_splits(splits(tmp_path, "x,a\n", "z,a\n"), head)
    with pytest.raises(InputError, match=r"test\.csv, line 2: 'label' is 'c'; it is not among"):
        read_splits(splits(tmp_path, "x,a\ny,b\n", "z,c\n"), head)


def test_test_texts_that_were_trained_on_are_counted_and_refused(tmp_path: Path) -> None:
    train = "".join(f"{number},{'good' if number % 2 else 'bad'}\n" for number in range(20))
    data = splits(tmp_path, train, "1,good\n" + "".join(f"{n}x,bad\n" for n in range(9)))
    read = read_splits(data, PROMPT)
    assert read.repeated == 1
    check_repeated(data, read)
    data = splits(tmp_path, train, "1,good\n2,good\n" + "".join(f"{n}x,bad\n" for n in range(9)))
    with pytest.raises(InputError, match=r"2 of its 11 texts are also in .*max_repeated.* 0\.1"):
        check_repeated(data, read_splits(data, PROMPT))
    check_repeated(replace(data, max_repeated=0.5), read_splits(data, PROMPT))


def test_the_hashes_are_of_what_was_read(tmp_path: Path) -> None:
    data = splits(tmp_path, "x,good\ny,bad\n", "z,good\n")
    before = {name: content_hash(getattr(data, name).read_bytes()) for name in ("train", "test")}
    assert read_splits(data, PROMPT).hashes == before

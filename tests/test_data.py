"""JSONL and CSV files: what is read, and one line naming file and line for what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedspzo.app.config import DataConfig, TaskConfig
from fedspzo.app.data import Example, check_repeated, read, read_splits
from fedspzo.app.model_files import content_hash
from fedspzo.errors import InputError

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
    ("a.csv", b"text;label\nx;good\n", ["line 1", "separated by ';'; save the file with commas"]),
    ("a.csv", b"text\tlabel\nx\tgood\n", ["line 1", "separated by tabs"]),
    ("a.csv", b"text|label\nx|good\n", ["line 1", "separated by '|'"]),
    ("a.csv", b"\x1f\x8b\x08\0abc", ["is compressed by gzip; unpack it"]),
    ("a.jsonl", b"\x1f\x8b\x08\0abc", ["is compressed by gzip; unpack it"]),
    ("a.csv", b"PK\x03\x04abc", ["is a zip archive, as Excel writes"]),
    ("a.csv", b"PAR1abc", ["is a Parquet file"]),
    ("a.csv", "text,label\nx,good\n".encode("utf-16"), ["is UTF-16 text; save it as UTF-8"]),
    (
        "a.jsonl",
        b'[\n{"text": "x", "label": "good"}\n]',
        ["line 1", "is the file one JSON document?"],
    ),
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
    with pytest.raises(InputError, match=r"holds no \.jsonl or \.csv file; give one a client"):
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

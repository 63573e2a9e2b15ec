"""JSONL and CSV files: what is read, and one line naming file and line for what is wrong."""

from __future__ import annotations

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
]


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

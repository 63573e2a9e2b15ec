"""Data files of every format and encoding, as people have them: what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_toys import CSV, HEADLESS, gzipped, parquet

from fedspzo.app.config import DataConfig
from fedspzo.app.data import Example, read, read_splits
from fedspzo.errors import InputError


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
    ("a.csv.gz", gzipped(CSV), ["good", "bad"]),
    ("a.csv", gzipped(CSV), ["good", "bad"]),  # whatever it is called
    ("a.JSONL.GZ", b'{"text": "x", "label": "good"}', ["good"]),
    ("a.json.gz", gzipped(b'[{"text": "x", "label": "good"}]'), ["good"]),
    ("a.parquet", parquet({"text": ["x", "y"], "label": ["good", "bad"]}), ["good", "bad"]),
    ("a.parquet", parquet({"n": [1], "label": [True], "text": ["x"]}), ["true"]),
    ("a.csv", parquet({"text": ["x", "y"], "label": [1.0, 2.0]}), ["1", "2"]),
    ("a.parquet.gz", gzipped(parquet({"text": ["x"], "label": [7]})), ["7"]),
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

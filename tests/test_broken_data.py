"""Data files that are refused: one line names file, row and remedy."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data_toys import CSV, PROMPT, gzipped, parquet, splits

from fedspzo.app.data import read, read_splits
from fedspzo.errors import InputError

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
    ("a.csv", gzipped(CSV)[:-9], ["is compressed by gzip, and damaged"]),
    ("a.csv.gz", gzipped(b"text,label\nx,fine\n"), ["line 2", "'label' is 'fine'"]),
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


def test_rows_that_lack_a_field_are_skipped_unless_all_do(tmp_path: Path) -> None:
    rows = ['{"text": "x", "label": "good"}', '{"text": "y"}', '{"label": "bad"}', "{}"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*rows, '{"text": "z", "label": "bad"}']))
    data = replace(splits(tmp_path, "", "q,good\n"), train=path)
    with pytest.raises(InputError, match=r"line 2: field 'label' is missing"):
        read_splits(data, PROMPT)
    skipping = replace(data, on_bad_row="skip")
    found = read_splits(skipping, PROMPT)
    assert [example.text for example in found.train] == ["x", "z"]
    assert found.skipped == {"train": 3, "test": 0}
    path.write_text('{"text": "", "lable": "good"}\n{"text": "x", "lable": "good"}\n')
    with pytest.raises(InputError, match=r"line 2: field 'label' is missing .*\[data\] label"):
        read_splits(skipping, PROMPT)


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet({"text": ["x"]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"which needs pyarrow; .*pip install 'fedspzo\[data\]'"):
        read(tmp_path / "a.parquet", "text", None)

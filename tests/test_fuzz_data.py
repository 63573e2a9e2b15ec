"""Data files of any bytes: refused in one line, or examples that can be used."""

from __future__ import annotations

import gzip
from pathlib import Path

from data_toys import parquet
from fuzzing import damaged, fuzz
from hypothesis import strategies as st
from odd_json import check_line, odd, text

from fedspzo.app import data
from fedspzo.errors import InputError

JSONL = b'{"text": "a fine film", "label": "good"}\n\n{"text": "dull \\u00e9", "label": "bad"}\n'

ARRAY = b"[" + b",".join(JSONL.split(b"\n\n")) + b"]"

CSV = b'text,label\n"a fine, ""long"" film",good\n\ndull,bad\n'

json_lines = st.lists(
    st.fixed_dictionaries({"text": odd | st.just("a film"), "label": odd}).map(text)
    | st.dictionaries(st.sampled_from(["text", "label", "x"]), odd, max_size=3).map(text)
    | odd.map(text)
    | st.sampled_from([b"[" * 5000, b'{"text": ' + b"9" * 5000 + b"}", b"NaN", b'{"text":'])
    | st.binary(max_size=20),
    max_size=3,
).map(b"\n".join)

cells = st.text(max_size=6) | st.sampled_from(['"', '""', "\0", "\r", "\n", ",", "text", "label"])

csv_lines = st.lists(st.lists(cells, max_size=3).map(",".join), max_size=4).map(
    lambda rows: "\n".join(["text,label", *rows]).encode("utf-8", "surrogatepass")
)


def read_data(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    labels = ("good", "bad")
    for label, allowed in ((None, None), ("label", None), ("label", labels)):
        try:
            examples = data.read(path, "text", label, allowed, "correct it")
        except InputError as error:
            check_line(error)
            continue
        for example in examples:
            assert example.text.strip()
            assert example.text.encode()
            assert (example.label is None) == (label is None)
            assert (example.label or "good").encode()  # it is written to config and journal


@fuzz(800, damaged(JSONL) | json_lines)
def test_a_jsonl_file_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.jsonl")


@fuzz(400, damaged(ARRAY) | json_lines.map(b"[%s]".__mod__))
def test_a_json_array_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.json")


@fuzz(400, damaged(CSV.replace(b",", b"\t")) | csv_lines)
def test_a_tsv_file_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.tsv")


@fuzz(400, damaged(gzip.compress(CSV, mtime=0)))
def test_a_gzip_file_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.csv.gz")


@fuzz(400, damaged(parquet({"text": ["a film", None], "label": ["good", "bad"]})))
def test_a_parquet_file_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.parquet")


@fuzz(800, damaged(CSV) | csv_lines | st.binary(max_size=60))
def test_a_csv_file_is_refused_in_one_line_or_read(content: bytes, scratch: Path) -> None:
    read_data(content, scratch / "rows.csv")

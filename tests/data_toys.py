"""A Parquet file, training and test files, and tasks to read them for."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from fedspzo.app.config import DataConfig, TaskConfig

HEADLESS = TaskConfig(type="lm")
PROMPT = TaskConfig(type="prompt", verbalizers={"good": "great", "bad": "awful"})
CSV = b"text,label\nx,good\ny,bad\n"


def parquet(columns: dict[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def gzipped(content: bytes) -> bytes:
    """Compress as gzip does, without the time: the tests' names are to be the same everywhere."""
    return gzip.compress(content, mtime=0)


def splits(tmp_path: Path, train: str, test: str) -> DataConfig:
    (tmp_path / "train.csv").write_text("text,label\n" + train)
    (tmp_path / "test.csv").write_text("text,label\n" + test)
    return DataConfig(train=tmp_path / "train.csv", test=tmp_path / "test.csv")

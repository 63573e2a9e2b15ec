"""Reads Parquet files by pyarrow, and datasets by the library `datasets`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError, one_line

from .sources import HubData, Source

AT_ONCE = 1000
"""Number of rows that are Python objects at a time."""

Rows = Iterator[tuple[int | str, dict[str, Any]]]


def parquet_rows(path: Path, data: bytes, wanted: Collection[str]) -> Rows:
    """Yield a Parquet file's rows, with their numbers from 1.

    Args:
        path: the file.
        data: its content.
        wanted: the fields to read. If one is missing, the rows have all fields.

    Raises:
        InputError: pyarrow is not installed, or cannot read the file.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f"{path}: is a Parquet file, which needs pyarrow; install it:"
            " pip install 'fedspzo[data]'"
        ) from None
    number = 0
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        columns = list(wanted) if set(wanted) <= set(file.schema_arrow.names) else None
        for batch in file.iter_batches(batch_size=AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path}: is no Parquet file that pyarrow reads ({one_line(error)[:200]}); write it"
            " anew, or convert it to JSON Lines"
        ) from None


class Dataset:
    """One split of a dataset, of the hub or of a folder that `save_to_disk` wrote.

    Args:
        source: the dataset.
        key: its key in [data]; this is the split too, unless the source names another.

    Raises:
        InputError: `datasets` is not installed, cannot load it, or it has no such split.
    """

    def __init__(self, source: Source, key: str) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        try:
            import datasets
        except ImportError:
            raise InputError(
                f"{source}: is a dataset, which needs the library datasets; install it:"
                " pip install 'fedspzo[datasets]'"
            ) from None
        try:
            if isinstance(source, HubData):
                name, config, split = source.parts(key)
                self._data = datasets.load_dataset(name, config, split=split)
            else:
                self._data = datasets.load_from_disk(str(source))
        except Exception as error:  # it raises those of many libraries
            raise InputError(
                f"{source}: datasets cannot load it ({one_line(error)[:200]}); correct the name, or"
                " load it once while online"
            ) from None
        if isinstance(self._data, dict):
            if key not in self._data:
                raise InputError(
                    f"{source}: has no split {key!r}, but {', '.join(sorted(self._data))}; name the"
                    " folder of one of them"
                )
            self._data = self._data[key]

    def rows(self, wanted: Collection[str]) -> Rows:
        """Yield the rows, with their numbers from 1. A label that is a class has the class's name.

        Args:
            wanted: the fields to read. If one is missing, the rows have all fields.
        """
        data = self._data
        if set(wanted) <= set(data.column_names):
            data = data.select_columns(list(wanted))
        classes = {
            name: feature.names
            for name, feature in data.features.items()
            if hasattr(feature, "names")
        }
        number = 0
        for batch in data.iter(batch_size=AT_ONCE):
            for values in zip(*batch.values(), strict=True):
                number += 1
                row = dict(zip(batch, values, strict=True))
                for name, names in classes.items():
                    row[name] = _class(row[name], names)
                told = json.dumps([row.get(name) for name in wanted], default=str)
                self._hash.update(told.encode() + b"\n")
                yield number, row

    @property
    def hash(self) -> str:
        """The hash of the rows that were read, 32 hexadecimal digits."""
        return self._hash.hexdigest()


def _class(number: Any, names: list[str]) -> Any:
    """Return a class's name. A row without a class has the number -1, or none."""
    known = isinstance(number, int) and 0 <= number < len(names)
    return names[number] if known else None

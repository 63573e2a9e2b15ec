"""Converts TOML tables to frozen dataclasses and back, with errors of one line.

Keys and types are checked against a dataclass's fields. The dataclass checks ranges itself, in its
`__post_init__`.
"""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fedspzo.errors import InputError, one_line

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the TOML document at `path`. Raise InputError if it cannot be read."""
    try:
        return tomllib.loads(
            path.read_text(encoding="utf-8-sig")
        )  # editors on Windows begin with a BOM
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; correct the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also for a number with thousands of digits
        raise InputError(f"{path}: not valid TOML: {one_line(error)}; correct it") from None


def check_keys(
    path: Path, section: str, table: Mapping[str, Any], known: Mapping[str, Any], needed: list[str]
) -> None:
    """Raise InputError if a table has an unknown key, or lacks one that is needed.

    Args:
        path: the file, for the message.
        section: the table's name, or "" for the document, whose keys are sections.
        table: the table.
        known: the keys that it may have. The message suggests the nearest.
        needed: the keys that it must have.
    """
    where = f"[{section}] " if section else ""
    what = "key" if section else "section"
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"
            raise InputError(f"{path}: {where}unknown {what} {key!r} = {table[key]!r}; {hint}")
    for key in needed:
        if key not in table:
            raise InputError(f"{path}: {where}{what} {key!r} is missing; add it")


def build(cls: type[T], path: Path, section: str, table: dict[str, Any]) -> T:
    """Create the frozen dataclass `cls` from a section's table.

    A field's annotation is the type that its key must have. A field without default is needed. A
    `Path` is relative to the file's folder. A class with a method `parse` makes its values by that.
    A field of a dataclass, or None, is a table of its own.

    Raises:
        InputError: a key or value is wrong; one line names file, section, key, value and remedy.
    """
    known: dict[str, Field[Any]] = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    needed = [
        name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING
    ]
    check_keys(path, section, table, known, needed)
    hints = get_type_hints(cls)
    values = {}
    for key, value in table.items():
        inner = _table_of(hints[key])
        if inner is not None and isinstance(value, dict):
            values[key] = build(inner, path, f"{section}.{key}", value)
            continue
        try:
            values[key] = _convert(value, hints[key], path.parent)
        except TypeError as error:
            raise InputError(f"{path}: [{section}] {key} is {value!r}; give {error}") from None
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{path}: [{section}] {one_line(error)}") from None


def _table_of(hint: Any) -> type[Any] | None:
    """Return the dataclass in a field's annotation, `Some | None`. None: it has no dataclass."""
    return next((choice for choice in get_args(hint) if is_dataclass(choice)), None)  # type: ignore[return-value]


def _convert(value: object, hint: Any, folder: Path) -> Any:
    """Return `value` as type `hint`. Raise TypeError with words for the value that is wanted."""
    if get_origin(hint) is not None:
        return _convert_generic(value, get_origin(hint), get_args(hint), folder)
    if hint is Path and isinstance(value, str) and value:
        return to_path(value, folder)
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is hint:
        return value
    if hasattr(hint, "parse"):
        return hint.parse(value)
    raise TypeError(_WANTED[hint])


def to_path(value: str, folder: Path) -> Path:
    """Return the path that a text names, relative to `folder`. Raise TypeError if it is invalid."""
    try:
        path = folder / Path(value).expanduser()
        path.exists()
        path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TypeError(f"another path ({reason})") from None
    return path


def _convert_generic(value: object, origin: Any, args: tuple[Any, ...], folder: Path) -> Any:
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, folder)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
        close = difflib.get_close_matches(str(value), args, n=1)
        suggestion = f" (did you mean {close[0]!r}?)" if close else ""
        raise TypeError(f"one of {', '.join(map(repr, args))}{suggestion}")
    if origin is tuple and isinstance(value, list) and args[1:] == (...,):
        args = args[:1] * len(value)
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        try:
            return tuple(_convert(v, a, folder) for v, a in zip(value, args, strict=True))
        except TypeError as error:
            raise TypeError(f"a list, each entry {error}") from None
    # the only table in use has texts as values
    texts = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    if origin is dict and texts:
        return value
    raise TypeError(_WANTED[origin])


def _convert_union(value: object, choices: tuple[Any, ...], folder: Path) -> Any:
    wanted = []
    # a text of a special form is first looked for, as it may be taken for a path too
    for choice in sorted(choices, key=lambda choice: not hasattr(choice, "parse")):
        special = hasattr(choice, "parse")
        # other types can be given in Python alone
        if special or choice in _WANTED or get_origin(choice) is not None:
            try:
                return _convert(value, choice, folder)
            except TypeError as error:
                wanted += [] if special else [str(error)]
    raise TypeError(" or ".join(wanted) or "a table, key = value")


_WANTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    Path: "a path in quotes",
    tuple: "a list, [1, 2]",
    dict: 'a table of texts, label = "word"',
}


def dump_value(value: object) -> str:
    """Return a text, number, boolean, path or tuple of these as TOML. Paths become absolute."""
    if isinstance(value, Path):
        value = str(value.resolve())
    if isinstance(value, tuple):
        value = list(value)
    # JSON's strings, numbers, booleans and flat lists are valid TOML, except for a raw DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

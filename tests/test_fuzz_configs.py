"""Configs of any bytes: refused in one line, or written out and read again alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzz_toml import TOML
from fuzzing import damaged, fuzz, limited
from hypothesis import strategies as st
from odd_json import check_line

from fedspzo.app import config
from fedspzo.errors import InputError

LINES = TOML.strip().split("\n")

TOML_VALUES = [
    *("true", "0", "-1", "1", "2.5", "nan", "inf", "-inf", "1e400", "9" * 400, "9" * 5000),
    *('""', '"a"', '"x\\u0000y"', '"~nobody/x"', '"~"', '".."', '"/"', '"\\n"', "'a'"),
    *('"{text}"', '"{text} {mask}"', '"{}"', '"' + "a" * 5000 + '"', '"train.jsonl"'),
    *("[]", "[1]", "[[1]]", "[1, 2.5]", '["a", "b"]', "{}", "{ a = 1 }", '{ a = "b" }'),
    *("[1e-3, " + "9" * 400 + "]", "1979-05-27", "07:32:00", "[" * 2000, "{a=" * 2000),
    *('"mezo"', '"balanced"', '"coupled"', '"lm"', '"auto"', '"classification"', '"iid"', '"demo"'),
]

toml_values = st.sampled_from(TOML_VALUES) | st.text(max_size=8)


@st.composite
def tomls(draw: Any) -> bytes:
    """The config with lines changed, lost, doubled or moved; at times with bytes damaged."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        action = draw(st.sampled_from(["value", "value", "key", "drop", "double", "move"]))
        key, equals, value = lines[at].partition(" = ")
        if action == "value":
            lines[at] = f"{key} = {draw(toml_values)}"
        elif action == "key":
            names = [
                "lr",
                "clients",
                "name",
                "seed",
                "sides",
                "dir",
                "eps",
                "evaluation",
                "a.b",
                '"\\n"',
            ]
            lines[at] = f"{draw(st.sampled_from(names))}{equals}{value}"
        elif action == "drop" and len(lines) > 1:
            lines.pop(at)
        elif action == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif action == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def read_config(content: bytes, scratch: Path) -> None:
    path = scratch / "some.toml"
    path.write_bytes(content)
    try:
        found = config.load(path)
    except InputError as error:
        check_line(error)
        return
    again = scratch / "again.toml"
    again.write_text(config.to_toml(found), encoding="utf-8")
    copy = config.load(again)
    assert (copy.federation, copy.optimizer, copy.task) == (
        found.federation,
        found.optimizer,
        found.task,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(LINES)), ids=LINES)
def test_any_value_in_any_place_of_a_config(number: int, scratch: Path) -> None:
    key, _, _ = LINES[number].partition(" = ")
    for value in TOML_VALUES:
        with limited():
            lines = [*LINES[:number], f"{key} = {value}", *LINES[number + 1 :]]
            read_config("\n".join(lines).encode(), scratch)


@fuzz(500, tomls() | tomls() | damaged(TOML.encode()))
def test_a_config_is_refused_in_one_line_or_can_be_run(content: bytes, scratch: Path) -> None:
    read_config(content, scratch)

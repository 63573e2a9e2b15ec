"""Any JSON: values that no reader expects, planted in any place of a document."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DIGEST = "00112233445566778899aabbccddeeff"
"""A digest of nothing."""


def text(value: Any) -> bytes:
    """Write `value` as JSON."""
    return json.dumps(value).encode()


ODD = [
    *(None, True, 0, -1, 1, 2**31, 2**64, 10**400, 1e-300, 1e300, 0.5, math.nan, math.inf),
    *("", "a", "..", "/etc/passwd", "../../x", "load", "\n", "\ud800", DIGEST),
    *([], {}, [[]], [{}], {"a": 1}, [1, "a"]),
]

odd: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(ODD) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list | tuple):
            yield from places(inner, (*path, key))


def planted(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another value at the path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = planted(copy[path[0]], path[1:], new)
    return copy


def check_line(error: Exception) -> None:
    """The error's message is one line that says something, and is short enough to be read."""
    message = str(error)
    assert message
    assert "\n" not in message
    assert len(message) < 2000, message

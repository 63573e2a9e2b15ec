"""Looks into journals and compacted journals, and makes records small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedspzo.federated.journal import merged_rounds as merging
from fedspzo.federated.journal.merged_rounds import MergedRounds
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.rounds import Round

DIGEST = "00112233445566778899aabbccddeeff"


def contents(path: Path) -> list[MergedRounds]:
    found = [content for _, content in DecodedJournal(path).entries()]
    assert all(isinstance(content, MergedRounds) for content in found)
    return found  # type: ignore[return-value]


def two_rounds_a_record(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    _, first, second, *_ = [c for _, c in DecodedJournal(path).entries() if isinstance(c, Round)]
    size = MergedRounds((first.update, second.update), DIGEST).size
    monkeypatch.setattr(merging, "BODY_BYTES", size)


def rounds_of(path: Path) -> Iterator[Round]:
    for _, content in DecodedJournal(path).entries():
        if isinstance(content, Round):
            yield content

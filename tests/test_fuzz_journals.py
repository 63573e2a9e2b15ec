"""Journals of any bytes: refused in one line, cut at a torn end, or read; never changed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_journals import BODIES, COMPACTED, HEADER, journal, of_blocks
from fuzz_toml import TOML
from fuzzing import accidents, damage, damaged, fuzz, limited
from hypothesis import strategies as st
from odd_json import ODD, check_line, odd, places, planted, text

from fedspzo.app import config, replay
from fedspzo.app import resume as resuming
from fedspzo.app import show as journal_view
from fedspzo.app.data import Splits
from fedspzo.app.removal import check_removal
from fedspzo.app.run_folder import JOURNAL, RunFolder
from fedspzo.errors import InputError
from fedspzo.federated.journal import compaction
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.header import Header
from fedspzo.journal.reader import TERMS, JournalError
from fedspzo.journal.salvage import examine, salvage

WHOLE = journal(text(HEADER), BODIES)

PARAMETERS = Header.from_json(HEADER).parameters

SPLITS = Splits([], [], (), hashes={"train": "0" * 32, "test": "0" * 32})

SHORT = journal(text(HEADER), COMPACTED)


def read_journal(content: bytes, scratch: Path) -> None:
    """Everything that reads a journal refuses it or gives what it holds; nobody changes it."""
    path = scratch / JOURNAL
    path.write_bytes(content)
    readers = (
        lambda: list(DecodedJournal(path).records()),
        lambda: list(DecodedJournal(path, salvage=True).records()),
        lambda: replayed(path),
        lambda: salvage_whole(path, scratch / "whole.fspz"),
        lambda: list(journal_view.lines(path)),
        lambda: list(journal_view.lines(path, round=1)),
        lambda: compaction.compact(path, scratch / "short.fspz"),
        lambda: resuming.check_same_run(RunFolder(scratch), run_config(scratch), SPLITS),
        lambda: check_removal(RunFolder(scratch, overwrite=True), run_config(scratch)),
        lambda: resuming.rounds_done(RunFolder(scratch)),
        lambda: resuming.begun_threads(RunFolder(scratch)),
    )
    for read in readers:
        try:
            read()
        except InputError as error:
            check_line(error)
    assert path.read_bytes() == content
    try:
        RunJournal(path, source="net").close()
    except JournalError:
        assert path.read_bytes() == content
    assert content.startswith(path.read_bytes())  # but for a torn end, which it cut off
    path.unlink()
    (scratch / "short.fspz").unlink(missing_ok=True)


def replayed(path: Path) -> None:
    """The rounds are replayed on weights of the journal's names and shapes."""
    log = DecodedJournal(path)
    if (log.header.parameters, log.header.base) == (PARAMETERS, HEADER["base"]):
        named = {p.name: torch.ones(p.shape, dtype=getattr(torch, p.dtype)) for p in PARAMETERS}
        replay.advance(named, log, replay.rounds(log))


def salvage_whole(path: Path, output: Path) -> None:
    """What a salvage writes is the start of the file, and a journal without damage."""
    output.unlink(missing_ok=True)
    salvage(path, output)
    assert path.read_bytes().startswith(output.read_bytes())
    again = examine(output)
    assert again.damage is None
    assert (again.size, again.torn) == (output.stat().st_size, 0)


@cache
def run_config(scratch: Path) -> config.Config:
    path = scratch / "run.toml"
    if not path.exists():
        path.write_text(TOML)
    return config.load(path)


@fuzz(600, damaged(WHOLE) | damaged(SHORT))
def test_a_damaged_journal_is_refused_or_cut(content: bytes, scratch: Path) -> None:
    read_journal(content, scratch)


def one_damaged(choice: tuple[list[tuple[int, bytes]], int, Any]) -> list[tuple[int, bytes]]:
    bodies, number, happened = choice
    number %= len(bodies)
    kind, body = bodies[number]
    return [*bodies[:number], (kind, damage(body, happened)), *bodies[number + 1 :]]


@fuzz(
    800,
    st.tuples(st.sampled_from([BODIES, COMPACTED]), st.integers(0, 3), accidents).map(one_damaged)
    | st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=60)), max_size=3)
    | st.integers(0, 4).map(lambda blocks: [(TERMS, of_blocks(blocks))])
    | st.permutations(BODIES + COMPACTED),
)
def test_records_with_right_checksums_are_checked(
    bodies: list[tuple[int, bytes]], scratch: Path
) -> None:
    read_journal(journal(text(HEADER), bodies), scratch)


@pytest.mark.slow
@pytest.mark.parametrize("place", list(places(HEADER)), ids=str)
def test_any_value_in_any_place_of_a_header(place: tuple[Any, ...], scratch: Path) -> None:
    for value in ODD:
        with limited():
            read_journal(journal(text(planted(HEADER, place, value)), BODIES), scratch)


@fuzz(
    300,
    st.tuples(st.sampled_from(list(places(HEADER))), odd).map(
        lambda change: text(planted(HEADER, *change))
    )
    | odd.map(text)
    | damaged(text(HEADER)),
)
def test_a_header_of_any_json_is_refused_or_usable(header: bytes, scratch: Path) -> None:
    read_journal(journal(header, BODIES), scratch)

"""A length that a sender made up takes no memory."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fuzz_journals import BODIES, HEADER, journal
from fuzzing import limited
from odd_json import text

from fedspzo.app.run_folder import JOURNAL
from fedspzo.federated import Plan, Probe, ProbeReport, Report
from fedspzo.federated.journal.merged_rounds import MergedRounds
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.protocol.framing import PLAN, PROBE, PROBE_REPORT, REPORT, frame
from fedspzo.journal.reader import MAGIC, JournalError
from fedspzo.journal.records import Record


def huge() -> Iterator[tuple[str, Any, bytes]]:
    many = struct.pack("<I", 2**32 - 1)
    plan_head = bytes(16) + bytes(16) + struct.pack("<?HIBBBBBdBB", True, 1, 1, *[0] * 5, 1.0, 2, 8)
    blocks = b"anchored" + struct.pack("<HdHd?", 1, 1.0, 2, 1.0, False)
    yield "updates of a plan", Plan.decode, frame(PLAN, plan_head + blocks + many)
    entries = struct.pack("<IIH", 1, 0, 2**16 - 1)
    yield "entries of an update", Plan.decode, frame(PLAN, plan_head + blocks + entries)
    scalars = struct.pack("<HH", 2**16 - 1, 2**16 - 1) + b"\xff" * 8192
    report = struct.pack("<II16sIff", 1, 1, bytes(16), 1, 0.0, 0.0)
    yield "steps of a report", Report.decode, frame(REPORT, report + scalars)
    settings = struct.pack("<BBBBBdBB", *[0] * 5, 1.0, 2, 8) + blocks[:-1]
    probe = struct.pack("<I16sI??", 1, bytes(16), 1, True, False) + settings
    steps = struct.pack("<B", 7) + struct.pack("<BH", 1, 2**16 - 1) + bytes(60)
    yield "losses of a probe", Probe.decode, frame(PROBE, probe + steps)
    yield "steps of a probe", Probe.decode, frame(PROBE, probe + b"\xff")
    shares = struct.pack("<IB16sfB", 1, 0, bytes(16), 0.0, 255)
    yield "cost shares of a report", ProbeReport.decode, frame(PROBE_REPORT, shares)
    yield "body of a message", Report.decode, b"FSPZ\1\2" + many + bytes(60)
    head = struct.pack("<IBHQ16s", 0, 0, 2**16 - 1, 0, bytes(16))
    yield "terms of a record", Record.decode, head + many
    yield "blocks of a record", Record.decode, head
    merged = partial(MergedRounds.decode, local_steps=2**16 - 1, directions=2**16 - 1)
    yield "rounds of a record", merged, bytes(4) + many + bytes(16)
    yield "entries of a round", merged, struct.pack("<II16sH", 0, 1, bytes(16), 2**16 - 1)
    yield "steps of a round", merged, struct.pack("<II16sHI", 0, 1, bytes(16), 1, 0) + scalars[4:]


@pytest.mark.parametrize(
    ("decode", "data"), [(d, b) for _, d, b in huge()], ids=[name for name, _, _ in huge()]
)
def test_a_length_of_gigabytes_takes_no_memory(decode: Any, data: bytes) -> None:
    tracemalloc.start()
    try:
        with limited(), pytest.raises(ValueError, match=r"byte|bytes|mask|steps"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_journals_length_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    whole = journal(text(HEADER), BODIES)
    for place in (12, len(journal(text(HEADER), []))):  # the header's length, the first record's
        path.write_bytes(whole[:place] + b"\xff" * 4 + whole[place + 4 :])
        tracemalloc.start()
        try:
            with limited(), pytest.raises(JournalError, match="length or kind"):
                list(DecodedJournal(path).records())
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
    # with a checksum that vouches for the length it is a record that was torn
    start = MAGIC + (3).to_bytes(4, "little")
    head = b"\xff" * 4 + b"\x01"
    check = zlib.crc32(head, zlib.crc32(start)).to_bytes(4, "little")
    path.write_bytes(start + head + check + bytes(100))
    tracemalloc.start()
    try:
        with limited(), pytest.raises(JournalError, match="ends inside its header"):
            DecodedJournal(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()

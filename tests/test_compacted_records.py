"""Many rounds in one record: what it holds, what it costs, what it refuses."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np
import pytest
from compacted_toys import DIGEST
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspzo.federated.journal import merged_rounds as merging
from fedspzo.federated.journal.merged_rounds import MergedRounds, merge, update_bytes
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars, Update
from fedspzo.journal.reader import OVERHEAD


def test_one_term_a_round_costs_at_most_sixteen_bytes_from_the_eighth_round_on() -> None:
    one = Scalars(1, (0,), np.ones((1, 1), np.float32))
    for rounds in (8, 100, 20_000):
        parts = (MergedRounds((Update(n, ((0, one),)),), DIGEST) for n in range(rounds))
        size = sum(OVERHEAD + len(part.encode()) for part in merge(parts))
        assert size <= 16 * rounds
    assert size < 11.1 * rounds


@st.composite
def updates(draw: Any, local_steps: int, directions: int) -> list[Update]:
    first = draw(st.sampled_from([0, 1, 2**32 - 5]))
    made = []
    for number in range(first, first + draw(st.integers(1, 5))):
        entries = []
        for client in sorted(draw(st.sets(st.sampled_from([0, 7, EVERYBODY]), max_size=3))):
            steps = tuple(sorted(draw(st.sets(st.integers(0, local_steps - 1), max_size=3))))
            values = np.arange(len(steps) * directions, dtype=np.float32)
            entries.append((client, Scalars(local_steps, steps, values.reshape(-1, directions))))
        made.append(Update(number, tuple(entries)))
    return made


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([(1, 1), (8, 2), (9, 3)]), st.integers(30, 200))
def test_records_hold_what_was_put_in(data: Any, shape: tuple[int, int], limit: int) -> None:
    rounds = data.draw(updates(*shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "BODY_BYTES", limit)
        parts = list(merge(MergedRounds((u,), DIGEST) for u in rounds))
        assert [update for part in parts for update in part.updates] == rounds
        for part in parts:
            body = part.encode()
            assert len(body) == part.size == 24 + sum(map(update_bytes, part.updates))
            assert len(body) <= limit or len(part.updates) == 1
            assert MergedRounds.decode(body, *shape) == part
        assert list(merge(parts)) == parts
        for one, two in itertools.pairwise(parts):
            assert one.size + update_bytes(two.updates[0]) > limit


def body(first: int, count: int, rest: bytes) -> bytes:
    return struct.pack("<II16s", first, count, bytes(16)) + rest


IDLE = bytes(2)

HOSTILE = [
    (body(0, 0, b""), "give consecutive"),
    (body(0, 2**32 - 1, b""), "body ends at byte 24"),
    (body(0, 1, IDLE * 2), "2 bytes after its last field"),
    (body(2**32 - 1, 2, IDLE * 2), "round is 4294967296"),
    (body(0, 1, b"\xff\xff"), "body ends at byte 26"),
    (body(0, 1, struct.pack("<HIBf", 1, 0, 2, 1.0)), "mask of steps names one beyond"),
    (body(0, 1, struct.pack("<HIBf", 1, 0, 1, np.inf)), "must be finite"),
    (body(0, 1, struct.pack("<HIBfIBf", 2, 1, 1, 1.0, 0, 1, 1.0)), "once, ascending"),
    (body(0, 40_000, IDLE * 40_000), "40000 rounds are 80024 bytes; at most 65536"),
    (b"", "body ends at byte 0"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE, ids=[m for _, m in HOSTILE])
def test_a_body_that_is_wrong_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MergedRounds.decode(content, 1, 1)

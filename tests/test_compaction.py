"""A compacted journal replays to the same bits, from fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compacted_toys import DIGEST, contents, rounds_of, two_rounds_a_record
from federated_toys import ToyTask, toy, toy_data
from journal_toys import federate, save_base

from fedspzo.app import replay
from fedspzo.app.show import lines
from fedspzo.errors import InputError
from fedspzo.federated import FederationConfig, OptimizerConfig, run
from fedspzo.federated.journal.compaction import compact
from fedspzo.federated.journal.merged_rounds import MergedRounds, merge
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.reader import OVERHEAD, ROUNDS, JournalReader
from fedspzo.journal.writer import write_whole

pytestmark = pytest.mark.slow


@pytest.fixture(
    params=[
        (dtype, seeds) for dtype in (torch.float32, torch.bfloat16) for seeds in ("own", "shared")
    ],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, list[str]]:
    """A base, a journal, and the digest of each round."""
    dtype, seeds = request.param
    base, path = save_base(tmp_path, toy(dtype)), tmp_path / "journal.fspz"
    result = federate(path, toy(dtype), seeds="shared" if seeds == "shared" else "per-client")
    return base, path, [done.digest for done in result.rounds]


def test_every_round_is_rebuilt_to_the_bit(made: tuple[str, Path, list[str]]) -> None:
    base, path, digests = made
    new = path.with_name("new.fspz")
    before = path.read_bytes()
    done = compact(path, new)
    assert path.read_bytes() == before
    assert (done.rounds, len(contents(new))) == (5, 1)
    assert done.terms == contents(new)[0].terms
    assert (done.bytes_before, done.bytes_after) == (len(before), new.stat().st_size)
    for number, expected in enumerate(digests):
        again = replay.replay(base, new, round=number)
        assert (again.digest, again.checked) == (expected, number in (0, 5))
    assert list(DecodedJournal(new).digests()) == [digests[0], *[None] * 4, digests[5]]


def test_several_records_and_their_digests(
    made: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, path, digests = made
    two_rounds_a_record(monkeypatch, path)
    new, again = path.with_name("new.fspz"), path.with_name("again.fspz")
    compact(path, new)
    assert [len(part.updates) for part in contents(new)] == [2, 2, 1]
    known = [digests[0], None, digests[2], None, digests[4], digests[5]]
    assert list(DecodedJournal(new).digests()) == known
    for number, expected in enumerate(digests):
        assert replay.replay(base, new, round=number).digest == expected
    compact(new, again)
    assert again.read_bytes() == new.read_bytes()
    monkeypatch.undo()  # a release that holds more in one record: only whole records are merged
    compact(new, path.with_name("wider.fspz"))
    compact(path, path.with_name("direct.fspz"))
    assert path.with_name("wider.fspz").read_bytes() == path.with_name("direct.fspz").read_bytes()


def test_a_wrong_digest_is_found_at_the_end_of_a_record(
    made: tuple[str, Path, list[str]],
) -> None:
    base, path, digests = made
    new = path.with_name("new.fspz")
    reader = JournalReader(path)
    (part,) = merge(MergedRounds((c.update,), DIGEST) for c in rounds_of(path))
    write_whole(new, reader.header, [(ROUNDS, part.encode())])
    with pytest.raises(InputError, match=f"round 5 replays to .*{digests[5]}, not {DIGEST}"):
        replay.replay(base, new)
    assert replay.replay(base, new, round=4).digest == digests[4]


@pytest.mark.parametrize("after", [1, 3])
def test_old_terms_are_merged_into_the_weights(
    made: tuple[str, Path, list[str]], after: int
) -> None:
    """The weights of a round and the later rounds are worth the base and all of them."""
    base, path, digests = made
    new, middle = path.with_name("new.fspz"), path.with_name("middle")
    replay.save(replay.replay(base, path, round=after), middle)
    done = compact(path, new, after=after)
    log = DecodedJournal(new)
    assert (log.first, log.header.base) == (after, digests[after])
    assert (done.rounds, replay.rounds(log)) == (5 - after, 5)
    assert done.terms < done.terms_before == compact(path, path.with_name("all.fspz")).terms
    for number in range(after, 6):
        assert replay.replay(str(middle), new, round=number).digest == digests[number]
    assert replay.verify(str(middle), new, round=after).matches
    late = replay.verify(str(middle), new)
    assert (late.matches, late.expected, late.found) == (False, digests[5], after)
    shown = list(lines(new))
    assert any(f"after {after} rounds, digest {digests[after]}" in line for line in shown)
    assert shown[-1].startswith(f"{5 - after} rounds, {done.terms} terms, ")
    with pytest.raises(InputError, match=f"source: 'toy', after {after} rounds"):
        replay.replay(base, new)
    with pytest.raises(InputError, match=f"round is {after - 1}; the journal has .* {after} to 5"):
        replay.replay(str(middle), new, round=after - 1)


def test_what_was_merged_is_merged_further(
    made: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, digests = made
    two_rounds_a_record(monkeypatch, path)
    first, second, direct, same = (path.with_name(f"{n}.fspz") for n in "abcd")
    compact(path, first, after=2)
    compact(first, second, after=4)
    compact(path, direct, after=4)
    assert second.read_bytes() == direct.read_bytes()
    assert list(DecodedJournal(second).digests()) == [digests[4], digests[5]]
    compact(second, same)
    assert same.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (-1, "after is -1; the journal has rounds 0 to 5"),
        (6, "after is 6; the journal has rounds 0 to 5"),
        (5, "has no round after 5 yet"),
        (2.0, "after is 2.0; give a whole number of rounds"),
    ],
)
def test_a_round_to_start_from_that_is_not_there(
    made: tuple[str, Path, list[str]], after: Any, message: str
) -> None:
    _, path, _ = made
    new = path.with_name("new.fspz")
    with pytest.raises(InputError, match=message):
        compact(path, new, after=after)
    assert not new.exists()


def test_a_round_without_a_digest_is_nothing_to_start_from(
    made: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, _ = made
    two_rounds_a_record(monkeypatch, path)
    new, none = path.with_name("new.fspz"), path.with_name("none.fspz")
    compact(path, new)
    with pytest.raises(InputError, match="has no digest of round 3 to start from; give 2, or"):
        compact(new, none, after=3)
    assert not none.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clients", "steps", "p", "seeds", "most"),
    [
        (8, 1, 1, "per-client", 9.6),
        (1, 1, 1, "per-client", 12.4),
        (8, 1, 1, "shared", 12.4),
        (3, 9, (1, 2), "per-client", 4.6),
    ],
)
def test_a_term_costs_at_most_sixteen_bytes(
    tmp_path: Path, clients: int, steps: int, p: Any, seeds: str, most: float
) -> None:
    rounds, path, new = 30, tmp_path / "journal.fspz", tmp_path / "new.fspz"
    mezo = isinstance(p, int)
    with RunJournal(path, source="toy") as journal:
        run(
            toy(single=mezo),
            ToyTask(),
            toy_data([4] * clients),
            FederationConfig(clients=clients, rounds=rounds, local_steps=steps, seeds=seeds),
            OptimizerConfig(
                lr=0.01, estimator="mezo" if mezo else "anchored", perturbations=p, sides="two"
            ),
            journal=journal,
        )
    done = compact(path, new)
    directions = p if mezo else sum(p)
    # docs/journal.md: a round, a client, a term, and what a record has beside its rounds
    k = 1 if seeds == "shared" else clients
    round_bytes = 2 + k * (4 + (steps + 7) // 8 + 4 * steps * directions)
    assert done.terms == rounds * k * steps * directions
    assert done.bytes_after - done.header_after == OVERHEAD + 24 + rounds * round_bytes
    assert done.term_after is not None
    assert done.term_after < most < 16
    assert done.term_before is not None
    assert done.term_before > done.term_after
    # docs/journal.md, of the live one: every client took all steps at the same cost, and its bytes
    # down and up take one to three bytes each
    least = OVERHEAD + 16 + 4 + 2 + 1 + 4 + clients * (1 + 4 + 4 * steps * directions)
    live = (done.bytes_before - done.header_before) / rounds
    assert least <= live <= least + 4

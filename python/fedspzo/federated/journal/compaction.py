"""A journal to be shipped: the rounds' terms alone, in few records and few bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fedspzo.errors import InputError
from fedspzo.journal.reader import ROUNDS, JournalReader
from fedspzo.journal.writer import write_whole

from .merged_rounds import MergedRounds, merge
from .reader import DecodedJournal
from .rounds import EvaluationResult

KEPT = ("federation", "optimizer", "privacy", "first")
"""Of the header's `run`: what the terms cannot be read without, and how private the run was."""


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What a compaction did.

    Attributes:
        first: how many rounds are merged into the weights that the new one starts from.
        rounds: how many the new one has.
        terms: likewise.
        terms_before: how many the journal has.
        bytes_before: of the journal, without a torn record at its end.
        bytes_after: of the new one.
        header_before: how many of these are the header's, and what stands before it.
        header_after: likewise.
    """

    first: int
    rounds: int
    terms: int
    terms_before: int
    bytes_before: int
    bytes_after: int
    header_before: int
    header_after: int

    @property
    def term_before(self) -> float | None:
        """Bytes a term without the header; None: there is no term."""
        before = self.bytes_before - self.header_before
        return before / self.terms_before if self.terms_before else None

    @property
    def term_after(self) -> float | None:
        """Likewise of the new one."""
        return (self.bytes_after - self.header_after) / self.terms if self.terms else None


def compact(journal: Path, output: Path, *, after: int | None = None) -> Compacted:
    """Write a federated run's journal anew, without its reports and with its records merged.

    It replays to the same weights, and to those of each round in between; each record's last
    digest is kept. What goes: all reports, who was asked, who failed and why, times, evaluations,
    and of the header the config and the hashes of the data. It is the same bytes each time, also
    when what is compacted was compacted before. It cannot be gone on with.

    With `after` the first rounds' terms are merged into the weights: the new journal has the later
    rounds alone, and starts from the weights that `replay` makes of that round.

    Args:
        journal: the file; it is not changed. Rounds that are done may be compacted while the run
            goes on.
        output: a new file; its folder exists.
        after: how many rounds are in the weights that it starts from. None: as many as before.

    Returns:
        What it did.

    Raises:
        InputError: the journal cannot be read, is damaged, is of no federated run, has no round
            after that, or no digest of the weights to start from; the output is there already or
            cannot be written. Nothing is left then.
    """
    log = DecodedJournal(journal)
    run = log.header.run or {}
    header = replace(log.header, run={name: run[name] for name in KEPT if name in run})
    after = log.first if after is None else after
    if isinstance(after, bool) or not isinstance(after, int):
        raise InputError(f"after is {after!r}; give a whole number of rounds")
    if after != log.first:
        header = replace(
            header, base=_digest(log, after), run={**(header.run or {}), "first": after}
        )
    rounds = terms = before = 0

    def records() -> Iterator[tuple[int, bytes]]:
        nonlocal rounds, terms, before

        def later() -> Iterator[MergedRounds]:
            nonlocal before
            for part in _parts(log):
                before += part.terms
                if part.updates[0].round >= after:
                    yield part

        for part in merge(later()):
            rounds, terms = rounds + len(part.updates), terms + part.terms
            yield ROUNDS, part.encode()
        if not rounds:
            later_than = f" after {after}" if after else ""
            raise InputError(f"{journal}: has no round{later_than} yet; compact it when it has")

    try:
        if output.exists():
            raise InputError(f"output '{output}' is there already; name a new file after -o")
        size, _ = write_whole(output, header.to_json(), records())
    except UnicodeEncodeError:
        raise InputError(
            f"{journal}: its header holds a text that UTF-8 cannot; restore the file from a copy"
        ) from None
    except OSError as error:
        raise InputError(
            f"output '{output}' cannot be written ({error.strerror}); name another file after -o"
        ) from None
    return Compacted(
        first=after,
        rounds=rounds,
        terms=terms,
        terms_before=before,
        bytes_before=log.reader.end,
        bytes_after=size,
        header_before=log.reader.start,
        header_after=JournalReader(output).start,
    )


def _digest(log: DecodedJournal, after: int) -> str:
    """Of the weights after so many rounds. Where it is known, a record ends."""
    if log.settings is None:
        raise _no_reports(log)
    known = log.known()
    log.check_round("after", after, max(known))
    digest = known[after]
    if digest is None:
        nearest = max(number for number in known if number < after and known[number])
        raise InputError(
            f"{log.reader.path}: has no digest of round {after} to start from; give {nearest}, or"
            " compact the journal it was made from"
        )
    return digest


def _parts(log: DecodedJournal) -> Iterator[MergedRounds]:
    """A journal's rounds, as finely divided as its digests are known."""
    if log.settings is None:
        raise _no_reports(log)
    for _, content in log.entries():
        if isinstance(content, tuple):
            raise _no_reports(log)
        if isinstance(content, MergedRounds):
            yield content
        elif not isinstance(content, EvaluationResult):
            yield MergedRounds((content.update,), content.digest)


def _no_reports(log: DecodedJournal) -> InputError:
    return InputError(
        f"{log.reader.path}: keeps steps with their seeds and no reports; ship it as it is"
    )

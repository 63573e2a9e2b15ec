"""Compaction: it makes a journal small enough to ship, by keeping only the rounds' terms."""

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

KEPT = ("federation", "optimizer", "privacy", "first", "task")
"""Entries of the header's `run` that are kept. Terms cannot be read without them; "privacy" tells
how private the run was, "task" how the model is used."""


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """The sizes of a journal before and after its compaction.

    Attributes:
        first: number of rounds that are merged into the weights that the new journal starts from.
        rounds: number of rounds in the new journal.
        terms: number of terms in the new journal.
        terms_before: number of terms in the old journal.
        bytes_before: bytes of the old journal, without a torn record at its end.
        bytes_after: bytes of the new journal.
        header_before: bytes of the old journal's header, with those before it.
        header_after: bytes of the new journal's header, with those before it.
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
        """Bytes for each term of the old journal, without the header. None: it has no terms."""
        before = self.bytes_before - self.header_before
        return before / self.terms_before if self.terms_before else None

    @property
    def term_after(self) -> float | None:
        """Bytes for each term of the new journal, without the header. None: it has no terms."""
        return (self.bytes_after - self.header_after) / self.terms if self.terms else None


def compact(
    journal: Path, output: Path, *, after: int | None = None, salvage: bool = False
) -> Compacted:
    """Write a smaller journal of a federated run, without reports and with merged records.

    The new journal replays to the same weights, also to those of each round in between. Each
    record keeps the digest after its last round. The compaction drops all reports, the clients
    asked, the rejections, times and evaluations, and from the header the config and the hashes of
    the data. The same journal always gives the same bytes, also if it was compacted before. A run
    cannot be resumed from a compacted journal.

    With `after` the first rounds' terms are merged into the weights. The new journal has the later
    rounds alone, and starts from the weights that `replay` makes of that round.

    Args:
        journal: the file, which is not changed. The run may go on meanwhile.
        output: a new file in an existing folder.
        after: number of rounds in the weights that the new journal starts from. Default None: as
            many as in those that the old one starts from.
        salvage: compact the rounds before the first record whose checksums fail, with a warning.
            Default False: such a record is an error.

    Returns:
        The sizes before and after.

    Raises:
        InputError: the journal cannot be read, is damaged, is not of a federated run, has no round
            after that, or has no digest of the weights to start from; or the output exists or
            cannot be written. No output is left then.
    """
    log = DecodedJournal(journal, salvage=salvage)
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
    log.reader.warn()
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
    """Return the digest of the weights after so many rounds. Only a record's end has one."""
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
    """Yield a journal's rounds. Each part ends where a digest is known."""
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

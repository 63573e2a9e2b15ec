"""The reader of a journal: it restores the settings, and decodes one record after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fedspzo.byte_reader import Reader
from fedspzo.checks import check_whole
from fedspzo.errors import InputError, one_line
from fedspzo.federated.aggregation import RULES, RecordedRule
from fedspzo.federated.found_rates import FoundRates
from fedspzo.federated.protocol.updates import Update, record
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.journal.header import Header
from fedspzo.journal.reader import (
    EVALUATION,
    ROUND,
    ROUNDS,
    TERMS,
    Entry,
    JournalError,
    JournalReader,
)
from fedspzo.journal.records import Record
from fedspzo.privacy import Privacy

from . import round_codec
from .merged_rounds import MergedRounds
from .rounds import EvaluationResult, Round, Spent

Content: TypeAlias = Round | MergedRounds | EvaluationResult | tuple[Record, str | None]
"""The content of a record. A pair has terms with their seeds, and the digest or None."""

T = TypeVar("T")


def privacy(header: Header) -> Privacy | None:
    """Return the privacy settings of a journal's run. Return None if it is not private.

    Raises:
        ValueError, TypeError: this release does not know the settings.
    """
    settings = (header.run or {}).get("privacy")
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise ValueError("the journal's run has a 'privacy' that is no JSON object")
    return _build(Privacy, settings)


def found_rates(
    header: Header, federation: FederationConfig, optimizer: OptimizerConfig
) -> FoundRates | None:
    """Restore the policy of lr = "auto", as it was before the first round of a journal's run.

    Returns None if the run has fixed learning rates.

    Args:
        header: the journal's header.
        federation: the settings in it.
        optimizer: the settings in it.

    Raises:
        ValueError: the header's values are not those of this release.
    """
    values = (header.run or {}).get("auto")
    if values is None:
        return None
    return FoundRates.from_dict(values, federation, optimizer.directions)


def spent(header: Header) -> Spent:
    """Return the costs of the steps before the first round of a journal's run.

    Older journals do not have them: these costs are 0 then.

    Raises:
        ValueError, TypeError: the header's values are no such costs.
    """
    values = (header.run or {}).get("spent", {})
    if not isinstance(values, dict):
        raise ValueError("the journal's run has a 'spent' that is no JSON object")
    return _build(Spent, values)


def first_round(header: Header) -> int:
    """Return the number of rounds that are merged into the weights that a journal starts from.

    Raises:
        ValueError: the header's value is not such a number.
    """
    first = (header.run or {}).get("first", 0)
    check_whole("first of the journal's run", first, 0, 2**32 - 1)
    return int(first)


def settings(header: Header) -> tuple[FederationConfig, OptimizerConfig]:
    """Return the settings of a journal's run, resolved.

    Raises:
        ValueError: the journal is not of a federated run, or is of another release.
    """
    if header.run is None:
        raise ValueError("the journal is of no federated run: its header has no 'run'")
    for name in ("federation", "optimizer"):
        if not isinstance(header.run.get(name), dict):
            raise ValueError(f"the journal's run has no {name!r}, a JSON object")
    optimizer = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in header.run["optimizer"].items()
    }
    used = _build(OptimizerConfig, optimizer)
    if used.rounding is None or len(used.learning_rates) != len(used.directions):
        raise ValueError("the journal's optimizer lacks values that were filled in for the run")
    if used.stream != header.stream:
        raise ValueError(
            f"the journal's optimizer has stream {used.stream!r}, its header {header.stream!r}"
        )
    federation = dict(header.run["federation"])
    rule = federation.get("aggregation")
    if (
        isinstance(rule, str) and rule not in RULES
    ):  # a user's rule; it is not needed to read coefficients
        federation["aggregation"] = RecordedRule(rule)
    return _build(FederationConfig, federation), used


def _build(cls: type[T], table: Mapping[str, Any]) -> T:
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(
            f"the journal's run has the setting {unknown[0]!r}, which this fedspzo does not know;"
            " use the release that wrote it"
        )
    return cls(**table)


class DecodedJournal:
    """Decodes the records of a journal, one after another.

    Args:
        path: the journal's file.
        salvage: end at a record whose checksums fail, as `JournalReader`. Default False.

    Attributes:
        header: the journal's header.
        settings: settings of the federation and the optimizer. None: not a federated run.
        privacy: settings of privacy. None: not a private run.
        first: number of the first round. Earlier rounds are in the base weights.

    Raises:
        JournalError: the file cannot be read or is damaged. An iteration raises it too.
    """

    def __init__(self, path: Path, *, salvage: bool = False) -> None:
        self.reader = JournalReader(path, salvage=salvage)
        try:
            self.header = Header.from_json(self.reader.header)
            self.settings = None if self.header.run is None else settings(self.header)
            self.privacy = privacy(self.header)
            self._blocks = len(self.header.names)
            if self.settings is not None:
                found_rates(self.header, *self.settings)
                moved = len(self.settings[1].directions)
                if moved != self._blocks:
                    raise ValueError(
                        f"the number of the run's blocks is {moved}, that of the parameters'"
                        f" {self._blocks}"
                    )
            self.first = first_round(self.header)
            spent(self.header)
        except (ValueError, TypeError, KeyError) as error:
            raise JournalError(f"{path}: header: {one_line(error)}") from None

    def entries(self) -> Iterator[tuple[Entry, Content]]:
        """Yield each record with its decoded content. Check that rounds are consecutive."""
        digest, done = self.header.base, self.first
        for entry in self.reader:
            try:
                content = self._decode(entry, done, digest)
            except ValueError as error:
                raise self.reader.damage(entry, error) from None
            for number, known in _rounds(content):
                if number != done:
                    raise self.reader.damage(entry, f"it is of round {number}, not {done}")
                digest, done = known or "", number + 1
            yield entry, content

    def records(self) -> Iterator[tuple[Record, str | None]]:
        """Yield each round's terms, with the digest of the weights after it, or None."""
        for _, content in self.entries():
            if isinstance(content, tuple):
                yield content
            elif not isinstance(content, EvaluationResult):
                for update, known in content.changes():
                    yield self._record(update), known

    def digests(self) -> Iterator[str | None]:
        """Yield the digest of the base weights, then of those after each round, or None."""
        yield self.header.base
        for _, content in self.entries():
            for _, known in _rounds(content):
                yield known

    def known(self) -> dict[int, str | None]:
        """Return the digest of the weights, or None, by the number of rounds done."""
        return dict(enumerate(self.digests(), self.first))

    def check_round(self, name: str, value: int, last: int) -> None:
        """Raise InputError unless a round is in the journal.

        Args:
            name: the argument's name, for the message.
            value: the round to check.
            last: the journal's last round.
        """
        if not self.first <= value <= last:
            broken = self.reader.broken
            raise InputError(
                f"{self.reader.path}: {name} is {value}; the journal has rounds {self.first} to"
                f" {last}{'' if broken is None else f', as {broken}'}"
            )

    def _decode(self, entry: Entry, done: int, digest: str) -> Content:
        """Decode a record.

        Args:
            entry: the record.
            done: number of rounds before it.
            digest: digest of the weights before it.
        """
        if entry.kind == TERMS:
            decoded, known = Record.decode(entry.body, self.header.stream)
            if len(decoded.terms) != self._blocks:
                raise ValueError(
                    f"the number of its blocks is {len(decoded.terms)}, the header's is"
                    f" {self._blocks}"
                )
            return decoded, known
        if entry.kind == EVALUATION:
            reader = Reader(entry.body)
            measured = EvaluationResult.decode(reader, done)
            reader.finish()
            return measured
        if entry.kind not in (ROUND, ROUNDS):
            raise ValueError(f"its kind is {entry.kind}; known are {ROUND} to {ROUNDS}")
        if self.settings is None:
            raise ValueError("it is a federated round, but the header has no run")
        federation, optimizer = self.settings
        if entry.kind == ROUNDS:
            steps, directions = federation.local_steps, sum(optimizer.directions)
            return MergedRounds.decode(entry.body, steps, directions)
        return round_codec.decode(entry.body, done, digest, federation, optimizer)

    def _record(self, update: Update) -> Record:
        if self.settings is None:  # `_decode` has refused it
            raise ValueError("the journal's header has no run")
        federation, optimizer = self.settings
        return record(
            update,
            run_seed=federation.seed,
            local_steps=federation.local_steps,
            optimizer=optimizer,
        )


def _rounds(content: Content) -> Iterator[tuple[int, str | None]]:
    """Yield the number of each round in a record, with the digest after it, or None."""
    if isinstance(content, tuple):
        yield content[0].round, content[1]
    elif not isinstance(content, EvaluationResult):
        for update, known in content.changes():
            yield update.round, known

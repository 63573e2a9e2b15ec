"""A federated run's journal: begun, appended to as rounds end, and continued after a crash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from fedspzo.closing import Closing
from fedspzo.journal import Record
from fedspzo.journal_file import (
    EVALUATION,
    ROUND,
    TERMS,
    Entry,
    JournalError,
    JournalReader,
    JournalWriter,
)
from fedspzo.journal_header import Header
from fedspzo.privacy import Privacy
from fedspzo.tables import one_line

from .rounds import Evaluation, Round
from .server import Server
from .settings import FederationConfig, OptimizerConfig
from .updates import record

T = TypeVar("T")


def privacy(header: Header) -> Privacy | None:
    """How private the steps of a journal's run are; None: they are not.

    Raises:
        ValueError, TypeError: the settings are not what this release knows.
    """
    settings = (header.run or {}).get("privacy")
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise ValueError("the journal's run has a 'privacy' that is no JSON object")
    return _build(Privacy, settings)


def settings(header: Header) -> tuple[FederationConfig, OptimizerConfig]:
    """The settings of the run that a journal is of, as they were used.

    Raises:
        ValueError: the journal is of no federated run, or of another release's.
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
    return _build(FederationConfig, header.run["federation"]), used


def _build(cls: type[T], table: Mapping[str, Any]) -> T:
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(
            f"the journal's run has the setting {unknown[0]!r}, which this fedspzo does not know;"
            " use the release that wrote it"
        )
    return cls(**table)


class JournalLog:
    """A journal's contents, decoded one after another.

    Args:
        path: the file.

    Attributes:
        header: its header.
        settings: of a federated run's federation and optimizer, else None.
        privacy: of a private run, else None.

    Raises:
        JournalError: the file cannot be read, or (also later, from an iteration) is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.reader = JournalReader(path)
        try:
            self.header = Header.from_json(self.reader.header)
            self.settings = None if self.header.run is None else settings(self.header)
            self.privacy = privacy(self.header)
        except (ValueError, TypeError, KeyError) as error:
            raise JournalError(f"{path}: header: {one_line(error)}") from None

    def entries(self) -> Iterator[tuple[Entry, Round | Evaluation | tuple[Record, str | None]]]:
        """Every record with what it holds; rounds are checked to be consecutive."""
        digest, done = self.header.base, 0
        for entry in self.reader:
            try:
                content = self._decode(entry, digest)
            except ValueError as error:
                raise self.reader.damage(entry, error) from None
            if not isinstance(content, Evaluation):
                number = content.round if isinstance(content, Round) else content[0].round
                if number != done:
                    raise self.reader.damage(entry, f"it is of round {number}, not {done}")
                digest = content.digest if isinstance(content, Round) else content[1] or ""
                done += 1
            yield entry, content

    def records(self) -> Iterator[tuple[Record, str | None]]:
        """Each round's terms, and the digest of the weights after it where it is known."""
        for _, content in self.entries():
            if isinstance(content, Round):
                yield self._record(content), content.digest
            elif isinstance(content, tuple):
                yield content

    def _decode(self, entry: Entry, digest: str) -> Round | Evaluation | tuple[Record, str | None]:
        if entry.kind == TERMS:
            return Record.decode(entry.body)
        if entry.kind == EVALUATION:
            return Evaluation.decode(entry.body)
        if entry.kind != ROUND:
            raise ValueError(f"its kind is {entry.kind}; known are 2, 3 and 4")
        if self.settings is None:
            raise ValueError("it is a federated round, but the header has no run")
        done = Round.decode(entry.body, digest)
        federation, optimizer = self.settings
        done.update.check(federation.local_steps, sum(optimizer.directions))
        return done

    def _record(self, done: Round) -> Record:
        if self.settings is None:  # `_decode` has refused it
            raise ValueError("the journal's header has no run")
        federation, optimizer = self.settings
        return record(
            done.update,
            run_seed=federation.seed,
            local_steps=federation.local_steps,
            optimizer=optimizer,
        )


class RunJournal(Closing):
    """The journal that `federated.run` keeps: what is on disk is never computed again.

    A context manager that closes the file.

    Args:
        path: the file. If it is there, the run continues after its last whole round.
        source: where the base weights come from.
        model: how they are loaded (`Header.model`).
        about: what else the header's `run` tells, a JSON object.

    Attributes:
        rounds: the rounds that were on disk.
        evaluations: the evaluations that were on disk, by round.
        optimizer: the settings they were made with; None: the run is new.
        header: the journal's; a new run has it once it is begun.
        torn: bytes of a torn record that were cut off.

    Raises:
        JournalError: the file is damaged, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        source: str,
        model: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.source, self.model, self.about = source, model, about
        self.rounds: list[Round] = []
        self.evaluations: dict[int, Evaluation] = {}
        self.optimizer: OptimizerConfig | None = None
        self.torn = 0
        self._writer: JournalWriter | None = None
        if path.exists():
            self._load()

    def _load(self) -> None:
        log = JournalLog(self.path)
        if log.settings is None:
            raise JournalError(f"{self.path}: is no federated run's journal; name another folder")
        self.header = log.header
        self.federation, self.optimizer = log.settings
        for _, content in log.entries():
            if isinstance(content, Round):
                self.rounds.append(content)
            elif isinstance(content, Evaluation):
                self.evaluations[content.round] = content
        self._writer = JournalWriter.resume(self.path)
        self.torn = self._writer.torn

    def begin(self, server: Server, privacy: Privacy | None = None) -> None:
        """Write the header of a new run, whose server is at its base weights."""
        private = {} if privacy is None else {"privacy": asdict(privacy)}
        run = {
            **private,
            "federation": asdict(server.federation),
            "optimizer": asdict(server.optimizer),
            **(self.about or {}),
        }
        self.header = Header.of(
            server.replica.blocks, self.source, base=server.digest, model=self.model, run=run
        )
        self._writer = JournalWriter.create(self.path, self.header.to_json())

    def check(
        self, server: Server, optimizer: OptimizerConfig, privacy: Privacy | None = None
    ) -> None:
        """Check that the run on disk is this one.

        Args:
            server: at its base weights, with the settings on disk.
            optimizer: the settings asked for; what is None in them was filled in.
            privacy: that asked for.

        Raises:
            JournalError: it has other settings, starts from other weights, or is cut elsewhere.
        """
        used = server.optimizer
        settled = replace(optimizer, perturbations=used.perturbations)
        asked = {
            **asdict(server.federation),
            **asdict(optimizer),
            "lr": settled.learning_rates,
            "at": used.at,  # the cut is compared below
        }
        known = {**asdict(self.federation), **asdict(used), "lr": used.learning_rates}
        for name, value in asked.items():
            if value not in (None, known[name]):
                raise JournalError(
                    f"{self.path}: its run has {name} = {known[name]!r}, this one {value!r};"
                    " give the same settings, or another folder"
                )
        private = (self.header.run or {}).get("privacy")
        if private != (None if privacy is None else asdict(privacy)):
            raise JournalError(
                f"{self.path}: its run has privacy {private}, this one {privacy}; give the same"
                " settings, or another folder"
            )
        if server.digest != self.header.base:
            raise JournalError(
                f"{self.path}: its run starts from weights with digest {self.header.base}, the base"
                f" model here has {server.digest}; give the same base model, or another folder"
            )
        here = Header.of(server.replica.blocks, self.source, base=server.digest)
        if here.names != self.header.names:
            raise JournalError(
                f"{self.path}: its run cuts the model elsewhere, or freezes other parameters;"
                " cut it alike, or give another folder"
            )

    def append(self, content: Round | Evaluation) -> None:
        """Add a round or an evaluation: afterwards it is on disk."""
        if self._writer is None:
            raise ValueError("the journal has no header yet; call begin first")
        kind = ROUND if isinstance(content, Round) else EVALUATION
        self._writer.append(kind, content.encode())

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

"""The writer of a federated run's journal: it appends each round, and continues after a crash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedspzo.federated.found_rates import FoundRates
from fedspzo.federated.settings import FederationConfig, OptimizerConfig
from fedspzo.files import Closing
from fedspzo.journal.header import Header
from fedspzo.journal.reader import COMPACTED, EVALUATION, ROUND, JournalError
from fedspzo.journal.writer import JournalWriter
from fedspzo.privacy import Privacy

from . import round_codec
from .merged_rounds import MergedRounds
from .reader import DecodedJournal, found_rates, spent
from .rounds import EvaluationResult, Round, Spent

if TYPE_CHECKING:
    from fedspzo.federated.server import Server


NOTHING = Spent()


class RunJournal(Closing):
    """Keeps the journal of `federated.run`, so that no round on disk is computed again.

    It is a context manager that closes the file.

    Args:
        path: the file. If it exists, the run continues after its last whole round.
        source: the source of the base weights.
        model: the way to load the base weights (`Header.model`). Default None: not given.
        about: further entries of the header's `run`, a JSON object. Default None: no entries.

    Attributes:
        rounds: the rounds that were on disk.
        evaluations: the evaluations that were on disk, by round.
        optimizer: the settings of the run on disk. None: the run is new.
        header: the journal's header. A new run has it after `begin`.
        torn: number of bytes of a torn record that were cut off.

    Raises:
        JournalError: the file is damaged, was compacted, or cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        source: str,
        model: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.source, self.model, self.about = source, model, about
        self.rounds: list[Round] = []
        self.evaluations: dict[int, EvaluationResult] = {}
        self.optimizer: OptimizerConfig | None = None
        self.torn = 0
        self._behind = False
        # the evaluation of the next round's start, to be written in that round's record
        self._evaluation: EvaluationResult | None = None
        self._writer: JournalWriter | None = None
        self._settings: tuple[FederationConfig, OptimizerConfig] | None = None
        self._last = 0  # number of the run's rounds
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        log = DecodedJournal(self.path)
        if log.settings is None:
            raise JournalError(f"{self.path}: is no federated run's journal; name another folder")
        self.header = log.header
        self._settings = self.federation, self.optimizer = log.settings
        for _, content in log.entries():
            if isinstance(content, MergedRounds):
                raise JournalError(f"{self.path}: {COMPACTED}")
            if isinstance(content, Round):
                self.rounds.append(content)
            measured = content.evaluation if isinstance(content, Round) else content
            if isinstance(measured, EvaluationResult):
                self.evaluations[measured.round] = measured
        self._writer = JournalWriter.resume(self.path)
        self.torn = self._writer.torn

    def reload(self) -> None:
        """Read the file again if it was written to, so that a run can go on after a failure."""
        if self._behind:
            self.close()
            self.rounds, self.evaluations, self._evaluation = [], {}, None
            self._behind = False
            self._load()

    @property
    def begun_rounds(self) -> int | None:
        """The number of rounds with which the run on disk began. None: the run is new."""
        return None if self.optimizer is None or not self._settings else self._settings[0].rounds

    @property
    def spent(self) -> Spent:
        """The costs of the steps before the first round of the run on disk."""
        return spent(self.header)

    def found_rates(self) -> FoundRates | None:
        """Restore the policy of lr = "auto" before the first round on disk. None: fixed rates."""
        return None if self._settings is None else found_rates(self.header, *self._settings)

    def begin(self, server: Server, privacy: Privacy | None = None, spent: Spent = NOTHING) -> None:
        """Write the header of a new run.

        Args:
            server: the run's server, at its base weights.
            privacy: the run's privacy settings. Default None: not private.
            spent: the costs of the steps before the first round. Default: none.
        """
        private = {} if privacy is None else {"privacy": asdict(privacy)}
        run = {
            **private,
            **({} if spent == NOTHING else {"spent": asdict(spent)}),
            **({} if server.found is None else {"auto": server.found.to_dict()}),
            "federation": server.federation.to_dict(),
            "optimizer": asdict(server.optimizer),
            **(self.about or {}),
        }
        self.header = Header.of(
            server.replica.blocks,
            self.source,
            base=server.digest,
            model=self.model,
            run=run,
            stream=server.optimizer.stream,
        )
        self._writer = JournalWriter.create(self.path, self.header.to_json())
        self._settings = server.federation, server.optimizer
        self._last = server.federation.rounds
        self._behind = True

    def check(
        self, server: Server, optimizer: OptimizerConfig, privacy: Privacy | None = None
    ) -> None:
        """Raise JournalError unless the run on disk is the one that was asked for.

        The latter may have more rounds than the header says, and then extends the former.

        Args:
            server: the server, at its base weights, with the settings on disk.
            optimizer: the settings asked for. Those that are None may have any value on disk.
            privacy: the privacy asked for. Default None: not private.

        Raises:
            JournalError: the run on disk has other settings or more rounds, starts from other
                weights, or cuts the model elsewhere.
        """
        used = server.optimizer
        asked = {
            **server.federation.to_dict(),
            **asdict(optimizer),
            "lr": _rates(replace(optimizer, perturbations=used.perturbations)),
            "at": used.at,  # the cut is compared below
        }
        found = server.found is not None
        known = {**self.federation.to_dict(), **asdict(used), "lr": "auto" if found else used.lr}
        self._last = server.federation.rounds
        longer = server.federation.rounds > self._settings[0].rounds if self._settings else False
        for name, value in asked.items():
            if value not in (None, known[name]) and not (name == "rounds" and longer):
                raise JournalError(
                    f"{self.path}: its run has {name} = {known[name]!r}, this one {value!r};"
                    " give the same settings, or another folder"
                )
        if len(self.rounds) > self._last:  # it was extended, and stopped
            raise JournalError(
                f"{self.path}: its run has {len(self.rounds)} rounds already, this one has"
                f" {self._last}; ask for as many at least ('fedspzo run' goes on with --resume), or"
                " give another folder"
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

    def append(self, content: Round | EvaluationResult) -> None:
        """Append a round, or an evaluation.

        A round is on disk when this returns. An evaluation is written in the next round's record,
        which takes half the bytes of a record of its own. Only the evaluation after the last round
        gets a record of its own.

        Raises:
            ValueError: the journal has no header yet.
            JournalError: the file cannot be written.
        """
        if self._writer is None or self._settings is None:
            raise ValueError("the journal has no header yet; call begin first")
        self._behind = True
        if isinstance(content, Round):
            content = replace(content, evaluation=self._evaluation)
            self._writer.append(ROUND, round_codec.encode(content, *self._settings))
            self._evaluation = None
        elif content.round == self._last:
            self._writer.append(EVALUATION, content.encode())
        else:
            self._evaluation = content

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def _rates(optimizer: OptimizerConfig) -> tuple[float, ...] | str:
    return "auto" if optimizer.lr == "auto" else optimizer.learning_rates

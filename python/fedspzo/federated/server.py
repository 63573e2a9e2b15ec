"""The server: samples clients, writes plans, turns their reports into the next weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedspzo.checks import check_whole
from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.protocol.messages import Plan, Report
from fedspzo.federated.protocol.updates import Update, record
from fedspzo.journal.records import Record
from fedspzo.journal.replica import Replica

from .client import DigestError
from .coefficients import coefficients, combined
from .found_rates import FoundRates
from .participation import sample
from .protocol import download
from .rejections import QuorumError, Rejection
from .settings import FederationConfig, OptimizerConfig
from .update_cache import UpdateCache


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a round.

    Attributes:
        update: what was added to the weights.
        reports: those it is made of, by client.
        rejected: the others, and those that did not come.
    """

    update: Update
    reports: tuple[Report, ...]
    rejected: tuple[Rejection, ...]


class Server:
    """Holds the global weights, and moves them from round to round.

    Args:
        replica: the base model, at round 0.
        federation: the run's settings.
        optimizer: the step's settings, resolved (`client.resolve`).
        found: the learning rates, where `optimizer.lr` is "auto".

    It keeps nothing about a client, and of the past only what a catch-up can use (`UpdateCache`),
    so its memory grows with neither clients nor rounds; the whole run is in the journal.

    Attributes:
        digest: of the global weights.
        optimizer: the settings of the round that comes next; found rates may change.
        download_bytes: of the messages of a download.
    """

    def __init__(
        self,
        replica: Replica,
        federation: FederationConfig,
        optimizer: OptimizerConfig,
        found: FoundRates | None = None,
    ) -> None:
        if replica.round != 0:
            raise ValueError(f"replica is at round {replica.round}; start from the base weights")
        self.replica = replica
        self.federation = federation
        self.optimizer = optimizer if found is None else replace(optimizer, lr=found.lr)
        self.found = found
        self.digest = replica.digest()
        self.download_bytes = download.size(replica)
        self._history = UpdateCache(self.download_bytes)

    @property
    def round(self) -> int:
        """The round that comes next, from 0: how many there were."""
        return self.replica.round

    @property
    def updates(self) -> tuple[Update, ...]:
        """The latest rounds' updates, which can still be sent."""
        return self._history.updates

    def sample(self) -> tuple[int, ...]:
        """The clients of this round, ascending: a function of run seed and round."""
        return sample(self.federation, self.round)

    def plan(self, client: int, *, since: int, train: bool = True) -> Plan:
        """What to ask of a client in this round, with what it has missed.

        Its missed updates are sent, or it downloads the weights: whichever is fewer bytes.

        Args:
            client: its id.
            since: the round whose weights it holds; 0: the base weights.
            train: False: only to catch up and report the digest.

        Raises:
            ValueError: there is no such client, or round.
        """
        check_whole("client", client, 0, self.federation.clients - 1)
        check_whole("since", since, 0, self.round)
        missed = self._history.last(self.round - since)
        return Plan(
            round=self.round,
            client=client,
            run_seed=self.federation.seed,
            digest=self.digest,
            train=train,
            local_steps=self.federation.local_steps,
            batch_size=self.federation.batch_size,
            seeds=self.federation.seeds,
            optimizer=self.optimizer,
            updates=missed or (),
            download=missed is None,
        )

    def download(self) -> Iterator[bytes]:
        """The messages of a download of this round's weights, made one at a time."""
        return download.encode(self.replica)

    def sort(self, reports: Iterable[Report]) -> tuple[list[Report], list[Rejection]]:
        """Tell the reports that can be used from those that cannot.

        Args:
            reports: in the order of arrival; of one client the first good one counts.

        Returns:
            Those accepted, by client; and the others, each with its reason.
        """
        planned = set(self.sample())
        accepted: dict[int, Report] = {}
        rejected = []
        for report in reports:
            reason = self._fault(report)
            if report.client not in planned:
                reason = f"it is not part of round {self.round}"
            elif reason is None and report.client in accepted:
                reason = "its report came twice; the first one counts"
            if reason is None:
                accepted[report.client] = report
            else:
                rejected.append(Rejection(report.client, reason))
        return [accepted[client] for client in sorted(accepted)], rejected

    def aggregate(self, reports: Iterable[Report], rejected: Iterable[Rejection] = ()) -> Outcome:
        """End the round: turn its clients' reports into a record and apply it.

        Args:
            reports: of the clients in `sample()`, in any order; those that cannot be used are
                sorted out.
            rejected: who is known to have failed, and why.

        Raises:
            QuorumError: too few can be used. Nothing has changed then.
        """
        planned = self.sample()
        accepted, refused = self.sort(reports)
        refused = [*rejected, *refused]
        silent = set(planned) - {r.client for r in accepted} - {r.client for r in refused}
        refused += [Rejection(client, "no report came") for client in sorted(silent)]
        needed = self.federation.needed
        if len(accepted) < needed:
            raise QuorumError(self.round, accepted, refused, asked=len(planned), needed=needed)
        update = Update(self.round, combined(accepted, self.federation, self.optimizer))
        self._apply(update, accepted)
        self.digest = self.replica.digest()
        return Outcome(update=update, reports=tuple(accepted), rejected=tuple(refused))

    def resume(self, rounds: Iterable[Round]) -> None:
        """Go on from where a journal ends, instead of from the base weights.

        Args:
            rounds: all the journal's, in their order.

        Raises:
            DigestError: its terms do not lead to the weights it names, or its reports not to the
                rates.
        """
        for done in rounds:
            if not np.allclose(done.lr, self.optimizer.learning_rates, rtol=1e-9, atol=0):
                raise DigestError(
                    f"the journal's round {done.round} has learning rates {done.lr}, what is before"
                    f" it leads to {self.optimizer.learning_rates}; resume on the release that"
                    " wrote it"
                )
            self._apply(done.update, done.reports)
            expected = done.digest
        self.digest = self.replica.digest()
        if self.round and self.digest != expected:
            raise DigestError(
                f"the journal's {self.round} rounds lead to weights with digest {self.digest}, not"
                f" {expected} as it says; resume on the release that wrote it"
            )

    def record(self, update: Update) -> Record:
        """The journal record of an update of this run."""
        return record(
            update,
            run_seed=self.federation.seed,
            local_steps=self.federation.local_steps,
            optimizer=self.optimizer,
        )

    def _apply(self, update: Update, reports: Sequence[Report]) -> None:
        self.replica.catch_up([self.record(update)])
        self._history.append(update)
        if self.found is not None:
            self.found.learn(reports, self.optimizer.directions, self.federation.counting)
            self.optimizer = replace(self.optimizer, lr=self.found.lr)

    def _fault(self, report: Report) -> str | None:
        """What is wrong with a report by itself."""
        if report.round != self.round:
            return f"its report is for round {report.round}, this is round {self.round}"
        gradients = report.gradients
        shape = (gradients.local_steps, gradients.values.shape[1])
        expected = (self.federation.local_steps, sum(self.optimizer.directions))
        if shape != expected:
            return f"gradients has (steps, directions) {shape}; the plan asks for {expected}"
        if report.digest != self.digest:
            return (
                f"its weights have digest {report.digest}, those of round {self.round}"
                f" {self.digest}; it must return to them after its steps"
            )
        values = gradients.values.astype(np.float64)
        if not np.isfinite(coefficients(values, 1.0, self.optimizer)).all():
            largest = np.abs(values).max()
            return f"gradients of up to {largest:.3g} times the learning rate overflow float32"
        return None

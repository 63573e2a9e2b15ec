"""The server: it samples clients, writes plans, and turns reports into the next weights."""

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

from .coefficients import aggregate, coefficients
from .found_rates import FoundRates
from .participation import sample
from .protocol import download
from .rejections import NO_FINITE_LOSS, DigestError, QuorumError, Rejection
from .settings import FederationConfig, OptimizerConfig
from .update_cache import UpdateCache


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a round that was aggregated.

    Attributes:
        update: the update that was added to the weights.
        reports: the reports that it was computed from, ascending by client.
        rejected: the clients whose reports were not used, or did not come, or had no finite loss.
    """

    update: Update
    reports: tuple[Report, ...]
    rejected: tuple[Rejection, ...]


class Server:
    """Holds the global weights, and updates them from round to round.

    It keeps no state of clients, and only those past updates that a client can catch up with
    (`UpdateCache`). So its memory grows with neither clients nor rounds. The journal has the whole
    run.

    Args:
        replica: the base model, at round 0.
        federation: the run's settings.
        optimizer: the step's settings, resolved (`optimizers.resolve`).
        found: decides the learning rates if `optimizer.lr` is "auto". Default None.

    Attributes:
        digest: digest of the global weights.
        optimizer: the settings of the next round; with `found` its rates change.
        download_bytes: bytes of a download's messages.

    Raises:
        ValueError: the replica is not at round 0.
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
        """The next round's number, from 0. It is the number of rounds done."""
        return self.replica.round

    @property
    def updates(self) -> tuple[Update, ...]:
        """The latest rounds' updates, which are kept to be sent."""
        return self._history.updates

    def sample(self) -> tuple[int, ...]:
        """Sample the clients of this round, ascending. They follow from the run's seed."""
        return sample(self.federation, self.round)

    def plan(self, client: int, *, since: int, train: bool = True) -> Plan:
        """Make a client's plan for this round.

        The plan has the updates that the client missed, or asks it to download the weights,
        whichever takes fewer bytes.

        Args:
            client: the client's id.
            since: the round whose weights the client holds; 0 for the base weights.
            train: False: the client is only to catch up and report its digest. Default True.

        Raises:
            ValueError: there is no such client or round.
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
        """Yield the messages of a download of this round's weights."""
        return download.encode(self.replica)

    def sort(self, reports: Iterable[Report]) -> tuple[list[Report], list[Rejection]]:
        """Separate the reports that can be used from those that cannot.

        Args:
            reports: the reports in the order of arrival. A client's first usable one counts.

        Returns:
            The accepted reports, ascending by client; and a rejection for each of the others.
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
        """End the round: aggregate its reports, and apply the update to the weights.

        Args:
            reports: reports of the clients in `sample()`, in any order. Those that cannot be used
                are rejected.
            rejected: clients that are known to have failed, with the reasons.

        Raises:
            QuorumError: too few reports can be used. The server has not changed then.
            ValueError: a coefficient overflows float32, or the aggregation rule's answer is wrong.
        """
        planned = self.sample()
        accepted, refused = self.sort(reports)
        refused = [*rejected, *refused]
        silent = set(planned) - {r.client for r in accepted} - {r.client for r in refused}
        refused += [Rejection(client, "no report came") for client in sorted(silent)]
        needed = self.federation.needed
        if len(accepted) < needed:
            raise QuorumError(self.round, accepted, refused, asked=len(planned), needed=needed)
        refused += [
            Rejection(report.client, NO_FINITE_LOSS)
            for report in accepted
            if not report.gradients.steps
        ]
        update = Update(self.round, aggregate(accepted, self.federation, self.optimizer))
        self._apply(update, accepted)
        self.digest = self.replica.digest()
        return Outcome(update=update, reports=tuple(accepted), rejected=tuple(refused))

    def resume(self, rounds: Iterable[Round]) -> None:
        """Apply the rounds of a journal, to go on where it ends.

        Args:
            rounds: all rounds of the journal, in order.

        Raises:
            DigestError: the terms do not lead to the digest in the journal, or the reports do not
                lead to its learning rates.
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
        """Return the journal record of an update of this run."""
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
        """Return the reason why a report cannot be used, or None. Other reports play no part."""
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

"""The server: samples clients, writes plans, turns their reports into the next weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedspzo.estimator import coefficients
from fedspzo.journal import Record
from fedspzo.replica import Replica

from .client import DigestError
from .messages import Plan, Report
from .partition import draw
from .rounds import Round
from .settings import FederationConfig, OptimizerConfig
from .updates import EVERYBODY, Scalars, Update, record, sample_seed


class Server:
    """Holds the global weights and the journal that made them.

    Args:
        replica: the base model, at round 0.
        federation: the run's settings.
        optimizer: the step's settings, resolved (`client.resolve`).

    Attributes:
        records: the journal: one record a round.
        updates: the same as scalars, the form in which they travel.
        digest: of the global weights.
    """

    def __init__(
        self, replica: Replica, federation: FederationConfig, optimizer: OptimizerConfig
    ) -> None:
        if replica.round != 0:
            raise ValueError(f"replica is at round {replica.round}; start from the base weights")
        self.replica = replica
        self.federation = federation
        self.optimizer = optimizer
        self.records: list[Record] = []
        self.updates: list[Update] = []
        self.digest = replica.digest()
        # the round whose global weights a client is known to hold
        self._known = dict.fromkeys(range(federation.clients), 0)

    @property
    def round(self) -> int:
        """The round that comes next, from 0: how many records there are."""
        return self.replica.round

    def sample(self) -> tuple[int, ...]:
        """The clients of this round, ascending: a function of run seed and round."""
        f = self.federation
        drawn = draw(f.clients, f.participants, sample_seed(f.seed, self.round))
        return tuple(sorted(int(client) for client in drawn))

    def plan(self, client: int, *, train: bool = True) -> Plan:
        """What to ask of a client in this round, with the updates it has not seen.

        Args:
            client: its id.
            train: False: only to catch up and report the digest.

        Raises:
            ValueError: there is no such client.
        """
        self._check_client(client)
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
            updates=tuple(self.updates[self._known[client] :]),
        )

    def check(self, report: Report) -> None:
        """Check a report against this round.

        Raises:
            ValueError: naming the field that does not fit, its value, and what would.
            DigestError: the client did not return to the global weights.
        """
        self._check_client(report.client)
        who = f"report of client {report.client}"
        if report.round != self.round:
            raise ValueError(f"{who}: round is {report.round}; this is round {self.round}")
        shape = (report.gradients.local_steps, report.gradients.values.shape[1])
        expected = (self.federation.local_steps, sum(self.optimizer.directions))
        if shape != expected:
            raise ValueError(
                f"{who}: gradients has (steps, directions) {shape}; the plan asks for {expected}"
            )
        if report.digest != self.digest:
            raise DigestError(
                f"{who}: digest is {report.digest}, the global weights of round {self.round} have"
                f" {self.digest}; the client must return to them after its steps"
            )

    def aggregate(self, reports: Iterable[Report]) -> Update:
        """End the round: turn its clients' reports into a record and apply it.

        Nothing changes when this raises.

        Args:
            reports: one of each client in `sample()`, in any order.

        Raises:
            ValueError, DigestError: a report fails `check`, comes from a client that is not part
                of the round, comes twice, or is missing.
        """
        planned = self.sample()
        by_client: dict[int, Report] = {}
        for report in reports:
            self.check(report)
            if report.client not in planned:
                raise ValueError(
                    f"report of client {report.client}: it is not part of round {self.round};"
                    f" clients {planned} are"
                )
            if report.client in by_client:
                raise ValueError(f"report of client {report.client}: it came twice; send it once")
            by_client[report.client] = report
        missing = sorted(set(planned) - set(by_client))
        if missing:
            raise ValueError(f"reports of clients {missing} are missing in round {self.round}")

        gradients = {client: by_client[client].gradients for client in planned}
        weights = self.weights([by_client[client] for client in planned])
        combine = self._shared if self.federation.seeds == "shared" else self._per_client
        update = Update(self.round, combine(gradients, weights))
        self._apply(update, planned)
        self.digest = self.replica.digest()
        return update

    def resume(self, rounds: Iterable[Round]) -> None:
        """Go on from where a journal ends, instead of from the base weights.

        Args:
            rounds: all the journal's, in their order.

        Raises:
            DigestError: its terms do not lead to the weights it names.
        """
        for done in rounds:
            self._apply(done.update, done.clients)
            expected = done.digest
        self.digest = self.replica.digest()
        if self.round and self.digest != expected:
            raise DigestError(
                f"the journal's {self.round} rounds lead to weights with digest {self.digest}, not"
                f" {expected} as it says; resume on the release that wrote it"
            )

    def _apply(self, update: Update, clients: Iterable[int]) -> None:
        """Add a round's update, which these clients do not know yet."""
        next_record = record(
            update,
            run_seed=self.federation.seed,
            local_steps=self.federation.local_steps,
            optimizer=self.optimizer,
        )
        for client in clients:
            self._known[client] = self.round
        self.replica.catch_up([next_record])
        self.records.append(next_record)
        self.updates.append(update)

    def weights(self, reports: Iterable[Report]) -> dict[int, float]:
        """What share of the round's update each client has; they add up to 1."""
        counts = {
            report.client: report.examples if self.federation.weighting == "examples" else 1
            for report in reports
        }
        total = sum(counts.values())
        return {client: count / total for client, count in counts.items()}

    def _per_client(
        self, gradients: Mapping[int, Scalars], weights: Mapping[int, float]
    ) -> tuple[tuple[int, Scalars], ...]:
        """Each client's own directions: its coefficients, times its weight."""
        return tuple(
            (client, self._coefficients(scalars, weights[client]))
            for client, scalars in gradients.items()
            if scalars.steps
        )

    def _shared(
        self, gradients: Mapping[int, Scalars], weights: Mapping[int, float]
    ) -> tuple[tuple[int, Scalars], ...]:
        """Directions of all clients alike: the weighted sum of their gradients, as of one client.

        A step that a client skipped counts as a zero of that client.
        """
        local_steps = self.federation.local_steps
        total = np.zeros((local_steps, sum(self.optimizer.directions)))
        taken = np.zeros(local_steps, dtype=bool)
        for client, scalars in gradients.items():
            rows = list(scalars.steps)
            total[rows] += weights[client] * scalars.values.astype(np.float64)
            taken[rows] = True
        steps = tuple(int(step) for step in np.flatnonzero(taken))
        mean = Scalars(local_steps, steps, total[taken].astype(np.float32))
        return ((EVERYBODY, self._coefficients(mean, 1.0)),) if steps else ()

    def _coefficients(self, gradients: Scalars, weight: float) -> Scalars:
        """-lr w g / P of every gradient, block by block with its learning rate."""
        ends = np.cumsum(self.optimizer.directions)[:-1]
        rates = self.optimizer.learning_rates
        rows = [
            [
                c
                for part, lr in zip(np.split(row, ends), rates, strict=True)
                for c in coefficients(part.tolist(), lr * weight)
            ]
            for row in gradients.values
        ]
        values = np.array(rows, dtype=np.float32).reshape(gradients.values.shape)
        return Scalars(gradients.local_steps, gradients.steps, values)

    def _check_client(self, client: int) -> None:
        if client not in self._known:
            raise ValueError(
                f"client is {client}; this federation has clients 0 to"
                f" {self.federation.clients - 1}"
            )

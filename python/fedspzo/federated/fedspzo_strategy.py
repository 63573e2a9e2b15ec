"""FedSPZO's rounds: plans go to the clients, reports of scalars come back, a journal keeps them.

Every method whose update is scalars along directions that follow from seeds runs by it, with
settings of its own: also MeZO, FedMeZO and DeComFL (`fedspzo.baselines`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fedspzo.checks import check_whole
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.records import Record
from fedspzo.journal.replica import Replica
from fedspzo.privacy import NOT_PRIVATE, Privacy

from .client import Client, resolve
from .exchange import InProcess, Link, play
from .found_rates import find
from .server import Server
from .strategy import Played, Reply, Setup, Strategy


class FedSPZO(Strategy):
    """Every message is encoded and decoded as if it crossed a network, and its bytes are counted.

    The server and the clients have models of their own; after each round every one of them is
    brought to the new weights and its digest compared with the server's.

    Args:
        setup: what the run is given.
        replicas: copies of the model that the clients share.
        journal: keeps each round on disk before the next one begins; a journal that has rounds is
            gone on with.
        link: makes, from the way to the clients, the one that is used.
        privacy: makes the clients' steps differentially private.

    Raises:
        ValueError: arguments that do not fit together, naming them.
        JournalError: the journal is of another run.
        DigestError: the journal does not lead to the weights that it names.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        replicas: int = 1,
        journal: RunJournal | None = None,
        link: Callable[[Link], Link] | None = None,
        privacy: Privacy | None = None,
    ) -> None:
        if privacy is not None and setup.optimizer.lr == "auto":
            raise ValueError(NOT_PRIVATE)
        check_whole("replicas", replicas, 1, setup.federation.clients)
        base = Replica(setup.blocks)
        server = None if journal is None else _resume(base, setup, journal, privacy)
        clients = setup.clients([base.copy() for _ in range(replicas)], privacy)
        if server is None:
            server = _begin(base, setup, clients)
            if journal is not None:
                journal.begin(server, privacy)
        direct = InProcess(clients)
        self._link = direct if link is None else link(direct)
        self._server, self._clients, self._journal = server, clients, journal
        self._one_a_copy = clients[:replicas]
        self._known: dict[int, int] = {}  # the round whose weights a client holds, as it would tell
        self._records: list[Record] = []
        self._past: tuple[Round, ...] = () if journal is None else tuple(journal.rounds)
        self.optimizer = server.optimizer
        self.base = server.digest if journal is None else journal.header.base
        self.trainable_bytes = base.trainable_bytes
        self.resumed = len(self._past)
        if journal is not None:
            self.evaluations = journal.evaluations

    @property
    def records(self) -> tuple[Record, ...]:
        """One record a round."""
        return tuple(self._records)

    def past(self) -> Iterator[Played]:
        """Give the journal's rounds, each charged to the privacy of those who were asked in it."""
        for done in self._past:
            self._count(done)
            yield self._played(done)

    def play(self, round: int, clock: Callable[[], float]) -> Played:
        """Make a round, and keep it in the journal.

        Raises:
            DigestError: a participant's weights are not the server's.
            QuorumError: too few clients reported, and again when they were asked again.
        """
        self._warm_up()
        done = play(self._server, self._link, self._known, clock)
        if self._journal is not None:
            self._journal.append(done)
        for client in self._one_a_copy:  # brought to the new weights, they compare digests
            plan = self._server.plan(client.client, since=client.replica.round, train=False)
            client.handle(plan, self._server.download())
        self.optimizer = self._server.optimizer
        return self._played(done)

    def keep(self, measured: EvaluationResult) -> None:
        """Keep an evaluation in the journal."""
        if self._journal is not None:
            self._journal.append(measured)

    def epsilons(self) -> tuple[float, ...] | None:
        """Tell what each client's privacy has spent since the start; None without privacy."""
        spent = tuple(c.privacy.epsilon() for c in self._clients if c.privacy is not None)
        return spent or None

    def _played(self, done: Round) -> Played:
        """Take note of a round that is done, and sum it up."""
        self._records.append(self._server.record(done.update))
        self._known.update({report.client: done.round for report in done.reports})
        return Played(
            replies=tuple(
                Reply(
                    client=report.client,
                    examples=report.examples,
                    loss=report.loss,
                    forwards=report.forwards,
                    skipped=report.gradients.local_steps - len(report.gradients.steps),
                )
                for report in done.reports
            ),
            clients=done.clients,
            bytes_down=done.bytes_down,
            bytes_up=done.bytes_up,
            digest=done.digest,
            seconds=done.seconds,
            rejected=done.rejected,
            downloads=done.downloads,
            lr=None if self._server.found is None else done.lr,
        )

    def _count(self, done: Round) -> None:
        """Charge a round of before to the privacy of those who were asked in it."""
        federation = self._server.federation
        for number in done.clients:
            account = self._clients[number].privacy
            if account is not None:
                account.count(federation.batch_size, federation.local_steps)

    def _warm_up(self) -> None:
        """Bring clients that took part in the past to where their first step left them; once."""
        first: dict[int, int] = {}
        for done in self._past:
            for report in done.reports:
                first.setdefault(report.client, done.round)
        for number, round in first.items():
            plan = self._server.plan(number, since=self._server.round, train=False)
            self._clients[number].warm_up(replace(plan, round=round))
        self._past = ()


def _begin(base: Replica, setup: Setup, clients: list[Client]) -> Server:
    """The server of a new run: what its settings leave open is measured."""
    federation = setup.federation
    settings = resolve(setup.optimizer, clients, batch_size=federation.batch_size)
    found = find(settings, clients, federation) if settings.lr == "auto" else None
    return Server(base, federation, settings, found)


def _resume(
    base: Replica, setup: Setup, journal: RunJournal, privacy: Privacy | None
) -> Server | None:
    """The server where the journal ends; None for a new journal."""
    journal.reload()
    if journal.optimizer is None:
        return None
    server = Server(base, setup.federation, journal.optimizer, journal.found_rates())
    journal.check(server, setup.optimizer, privacy)
    server.resume(journal.rounds)
    return server

"""FedSPZO's rounds: the clients get plans and report scalars, and a journal keeps the rounds.

MeZO, FedMeZO and DeComFL (`fedspzo.baselines`) use this strategy with settings of their own, as
their updates are scalars along seeded directions too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from fedspzo.checks import check_whole
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.records import Record
from fedspzo.journal.replica import Replica
from fedspzo.privacy import Privacy, public_setting

from .exchange import InProcess, Link, RemoteLink, play
from .first_steps import begin
from .server import Server
from .strategy import Played, Reply, Setup, Strategy

logger = logging.getLogger(__name__)


class FedSPZO(Strategy):
    """Runs FedSPZO between a server and simulated clients.

    Every message is encoded and decoded as if it crossed a network, and its bytes are counted.
    The server and the clients have separate models. After each round all of them are brought to
    the new weights, and their digests are compared with the server's.

    With a `RemoteLink` the clients are elsewhere, and have the examples. Those in `setup` are then
    all empty.

    Args:
        setup: the run's model, task, examples and settings.
        replicas: number of copies of the model, which the clients share. Default 1.
        journal: keeps each round on disk before the next one begins. If it has rounds, the run is
            resumed after them. Default None: no journal.
        link: takes the link to the clients, and returns the one to use. Default None: that link.
        privacy: makes the clients' steps differentially private. Default None: not private.

    Raises:
        ValueError: arguments do not fit together; the message names them.
        JournalError: the journal is of another run.
        DigestError: the journal's records do not lead to the digests that it holds.
        QuorumError: no client can take the steps before the first round.
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
        public = public_setting(setup.optimizer.lr, setup.optimizer.newton)
        if privacy is not None and public:
            raise ValueError(public)
        check_whole("replicas", replicas, 1, setup.federation.clients)
        base = Replica(setup.blocks)
        server = None if journal is None else _resume(base, setup, journal, privacy)
        there = any(map(len, setup.examples))
        clients = setup.clients([base.copy() for _ in range(replicas)], privacy) if there else []
        direct = InProcess(clients, setup.federation.timeout)
        self._link = direct if link is None else link(direct)
        if server is None:
            # clients elsewhere tell themselves how many examples they have
            sizes = {client.client: len(client.examples) for client in clients} or None
            server, self.spent = begin(base, setup.federation, setup.optimizer, self._link, sizes)
            if journal is not None:
                journal.begin(server, privacy, self.spent)
        elif journal is not None:
            self.spent = journal.spent
        self._server, self._clients, self._journal = server, clients, journal
        self._one_a_copy = clients[:replicas]
        self._known: dict[int, int] = {}  # the round whose weights each client holds
        self._digests: list[str] = []  # of the weights of each round, from the base on
        self._records: list[Record] = []
        self._past: tuple[Round, ...] = () if journal is None else tuple(journal.rounds)
        self.optimizer = server.optimizer
        self.base = server.digest if journal is None else journal.header.base
        self.trainable_bytes = base.trainable_bytes
        self.resumed = len(self._past)
        self._digests.append(self.base)
        if journal is not None:
            self.evaluations = journal.evaluations

    @property
    def records(self) -> tuple[Record, ...]:
        """The journal records, one for each round."""
        return tuple(self._records)

    def past(self) -> Iterator[Played]:
        """Yield the journal's rounds, and charge each to the privacy accounts of its clients."""
        for done in self._past:
            self._count(done)
            yield self._played(done)

    def play(self, round: int, clock: Callable[[], float]) -> Played:
        """Play a round, and write it to the journal.

        Raises:
            DigestError: a client's weights differ from the server's.
            QuorumError: too few clients reported, also after the retries.
        """
        self._warm_up()
        known: Mapping[int, int] = self._known
        if isinstance(self._link, RemoteLink):
            known = _Held(self._link, self._digests)
        done = play(self._server, self._link, known, clock)
        if self._journal is not None:
            self._journal.append(done)
        for client in self._one_a_copy:  # each compares its digest with the server's
            plan = self._server.plan(client.client, since=client.replica.round, train=False)
            client.handle(plan, self._server.download())
        self.optimizer = self._server.optimizer
        return self._played(done)

    def keep(self, measured: EvaluationResult) -> None:
        """Write an evaluation to the journal."""
        if self._journal is not None:
            self._journal.append(measured)

    def epsilons(self) -> tuple[float, ...] | None:
        """Return the epsilon that each client has spent since the start; None without privacy."""
        spent = tuple(c.privacy.epsilon() for c in self._clients if c.privacy is not None)
        return spent or None

    def _played(self, done: Round) -> Played:
        """Record a finished round, and return its summary."""
        self._records.append(self._server.record(done.update))
        self._digests.append(done.digest)
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
        """Charge a round from the journal to the privacy accounts of its clients."""
        federation = self._server.federation
        for number in done.clients if self._clients else ():
            account = self._clients[number].privacy
            if account is not None:
                account.count(federation.batch_size, federation.local_steps)

    def _warm_up(self) -> None:
        """Warm up the clients that took part in the journal's rounds. Does so once."""
        first: dict[int, int] = {}
        for done in self._past if self._clients else ():
            for report in done.reports:
                first.setdefault(report.client, done.round)
        for number, round in first.items():
            plan = self._server.plan(number, since=self._server.round, train=False)
            try:
                self._clients[number].warm_up(replace(plan, round=round))
            except Exception as error:  # it fails in the round again, and is named there
                logger.warning("client %d: %s: %s", number, type(error).__name__, error)
        self._past = ()


class _Held(Mapping[int, int]):
    """The round whose weights each client holds. Looking one up asks the client.

    Args:
        link: the link to the clients.
        digests: digest of the weights of each round, from the base on. A client that names another
            digest, or a round that is none of these, has weights of something else, and starts from
            the base.
    """

    def __init__(self, link: RemoteLink, digests: Sequence[str]) -> None:
        self._link = link
        self._digests = digests

    def __getitem__(self, client: int) -> int:
        round, digest = self._link.holds(client) or (0, "")
        if not 0 <= round < len(self._digests) or digest != self._digests[round]:
            raise KeyError(client)
        return round

    def __iter__(self) -> Iterator[int]:
        raise TypeError("the clients are known to the link alone; look one up")

    def __len__(self) -> int:
        raise TypeError("the clients are known to the link alone; look one up")


def _resume(
    base: Replica, setup: Setup, journal: RunJournal, privacy: Privacy | None
) -> Server | None:
    """Create the server at the journal's last round. Return None for a new journal."""
    journal.reload()
    if journal.optimizer is None:
        return None
    server = Server(base, setup.federation, journal.optimizer, journal.found_rates())
    journal.check(server, setup.optimizer, privacy)
    server.resume(journal.rounds)
    return server

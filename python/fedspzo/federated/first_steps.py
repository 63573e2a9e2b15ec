"""Begins a run: finds what its settings leave open, on clients that answer.

`perturbations` and `newton` are chosen and the rates of lr="auto" are found by steps on clients'
examples, before the first round. Each client that is needed is asked through the link first. One
that does not answer, or whose examples raise an error, is named and left out of these steps, like a
client that fails in a round. The steps themselves are taken in this process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from fedspzo import estimators
from fedspzo.blocks.cut import Blocks
from fedspzo.federated.journal.rounds import Spent
from fedspzo.federated.protocol.messages import Plan
from fedspzo.journal.replica import Replica

from .client import Client, measures, resolve
from .exchange import Answers, Link, Watch, send
from .found_rates import FoundRates, find, probe_clients
from .rejections import ClientError, QuorumError
from .server import Server
from .settings import FederationConfig, OptimizerConfig

logger = logging.getLogger(__name__)


def begin(
    base: Replica,
    clients: Sequence[Client],
    federation: FederationConfig,
    settings: OptimizerConfig,
    link: Link,
) -> tuple[Server, Spent]:
    """Create the server of a new run, and return what the steps before its first round cost.

    Args:
        base: the base model.
        clients: all clients.
        federation: the run's settings.
        settings: the step's settings, as the user gave them.
        link: carries messages to the clients.

    Raises:
        QuorumError: steps are needed, and no client can take them.
    """
    first = _FirstSteps(base, clients, federation, settings, link)
    with _hurried(clients, federation.timeout):
        used = first.measure(settings)
        found = first.find(used) if used.lr == "auto" else None
    return Server(base, federation, used, found), first.spent


@contextmanager
def _hurried(clients: Sequence[Client], timeout: float | None) -> Iterator[None]:
    """Let no step of a client take longer than a round may, within a context.

    The clients have the same task.
    """
    task = clients[0].task
    watch = Watch(task, timeout, each_batch=True)
    for client in clients:
        client.task = watch
    try:
        yield
    finally:
        for client in clients:
            client.task = task


class _FirstSteps:
    """Takes the steps before the first round.

    The arguments are those of `begin`.

    Attributes:
        spent: the costs so far.
    """

    def __init__(
        self,
        base: Replica,
        clients: Sequence[Client],
        federation: FederationConfig,
        settings: OptimizerConfig,
        link: Link,
    ) -> None:
        self.spent = Spent()
        self._federation = federation
        self._link = link
        self._left = list(clients)
        self._answered: set[int] = set()
        self._failures = Answers()
        self._asked = len(clients)
        known = _any_settings(settings, base.blocks)
        self._plan = Plan(
            round=0,
            client=0,
            run_seed=federation.seed,
            digest=base.digest(),
            train=False,
            local_steps=federation.local_steps,
            batch_size=federation.batch_size,
            seeds=federation.seeds,
            optimizer=resolve(known, clients, batch_size=federation.batch_size),
            updates=(),
        )

    def measure(self, settings: OptimizerConfig) -> OptimizerConfig:
        """Resolve the settings. A step of a client that answers measures the blocks' costs.

        It is not counted in `spent`: a run whose settings have the result, like that of the config
        that `fedspzo run` leaves, then costs the same.
        """
        size = self._federation.batch_size
        if not measures(settings):
            return resolve(settings, self._left, batch_size=size)
        while True:
            client = self._left[0]
            if self._answers(client):
                try:
                    used = resolve(settings, [client], batch_size=size)
                except Exception as error:
                    self._leave_out(client, error)
                else:
                    self.spent = Spent()
                    self._answered.clear()
                    return used

    def find(self, settings: OptimizerConfig) -> FoundRates:
        """Find the first round's rates by steps on the examples of clients that answer."""
        while True:
            sizes = [len(client.examples) for client in self._left]
            chosen = sorted(set(probe_clients(sizes, self._federation.counting)))
            if not all(self._answers(client) for client in [self._left[n] for n in chosen]):
                continue
            try:
                found = find(settings, self._left, self._federation)
            except ClientError as error:
                (client,) = (one for one in self._left if one.client == error.client)
                self._leave_out(client, error.__cause__ or error)
            else:
                self.spent = replace(self.spent, forwards=found.forwards)
                return found

    def _answers(self, client: Client) -> bool:
        """Tell whether a client answers to a plan without steps. Leave it out if it does not."""
        number = client.client
        if number in self._answered:
            return True
        answers = Answers()
        send(self._link, replace(self._plan, client=number), (), answers)
        self.spent = replace(
            self.spent,
            bytes_down=self.spent.bytes_down + answers.down,
            bytes_up=self.spent.bytes_up + answers.up,
        )
        if any(report.digest == self._plan.digest for report in answers.reports):
            self._answered.add(number)
            return True
        if answers.reports:
            answers.reject(number, "its weights have another digest than the base")
        reason = answers.rejected[-1].reason if answers.rejected else "no report came"
        self._leave_out(client, answers.cause, reason)
        return False

    def _leave_out(
        self, client: Client, cause: BaseException | None, reason: str | None = None
    ) -> None:
        reason = f"{type(cause).__name__}: {cause}" if reason is None else reason
        self._failures.reject(client.client, reason, cause)
        logger.warning("before round 0: %s", self._failures.rejected[-1])
        self._left.remove(client)
        if not self._left:
            failures = self._failures
            error = QuorumError(0, (), failures.rejected, asked=self._asked, needed=1)
            raise error from failures.cause


def _any_settings(settings: OptimizerConfig, blocks: Blocks) -> OptimizerConfig:
    """Return settings that can be sent, with any perturbations and rates where none are known."""
    number = len(blocks.groups)  # of one block `resolve` has something to say
    joint = estimators.find(settings.estimator).joint
    if settings.perturbations is None and not joint and number > 1:
        settings = replace(settings, perturbations=(2,) * number)
    return replace(settings, lr=1.0) if settings.lr == "auto" else settings

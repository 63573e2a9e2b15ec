"""The exchange of messages in a round: clients get plans until enough of them have reported."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from torch import Tensor, nn

from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.protocol.messages import Plan, Report

from .client import Client
from .rejections import FIRST, QuorumError, Rejection, first_ones
from .server import Server
from .task import PrivateTask, Task

logger = logging.getLogger(__name__)


class Link(Protocol):
    """Carries messages to the clients and back."""

    def exchange(self, client: int, message: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        """Send a client a message, and return those that have come from it since the last.

        Args:
            client: the client's id. The link vouches that what it returns came from this client.
            message: an encoded `Plan`, or before the first round an encoded `Probe`.
            weights: the messages of a download, if a plan has one; each is made when it is taken.

        Returns:
            What `Client.answer` returned: the answer to this message, and earlier ones that came
            late. It is empty if the client did not answer.

        Raises:
            Exception: the client cannot be reached, ran out of time, or failed.
        """


@runtime_checkable
class RemoteLink(Link, Protocol):
    """A link to clients in other processes, which work at the same time."""

    def start(self, client: int, message: bytes, weights: Iterable[bytes]) -> None:
        """Send a client a message. The `exchange` of the same message then waits for the answer.

        The arguments are those of `exchange`. A client that cannot be reached raises no error here.
        """

    def holds(self, client: int) -> tuple[int, str] | None:
        """Return the round whose weights a client says it holds, and their digest.

        Waits for the client, within the link's own limit. None: it holds the base, or is not there.
        """


class InProcess:
    """Calls clients that are objects of this process. This is the default link.

    Args:
        clients: the clients, by id; all of them, or some.
        timeout: seconds that a client may take. The time is looked at before each evaluation of the
            loss, and when the report is ready. Default None: no limit.
    """

    def __init__(
        self, clients: Sequence[Client] | Mapping[int, Client], timeout: float | None = None
    ) -> None:
        self.clients = clients
        self.timeout = timeout

    def exchange(self, client: int, message: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        """Let the client do what the message asks for, and return its answer.

        Raises:
            TimeoutError: the client took too long. Its weights are the global ones again.
        """
        asked = self.clients[client]
        task = asked.task
        watch = Watch(task, self.timeout)
        try:
            asked.task = watch
            answer = asked.answer(message, weights)
        finally:
            asked.task = task
        watch.check()
        return [answer]


class Watch:
    """Passes calls on to a client's task until the time is up, and then raises TimeoutError.

    Args:
        task: the task.
        timeout: the time in seconds, from now on. None: no limit.
    """

    def __init__(self, task: Task, timeout: float | None) -> None:
        self.task = task
        self.timeout = timeout
        self._started = time.monotonic()

    def check(self) -> None:
        """Raise TimeoutError if the time is up."""
        if self.timeout is not None and time.monotonic() - self._started > self.timeout:
            raise TimeoutError(f"no answer within {self.timeout:g} s")

    def collate(self, examples: list[Any]) -> Any:
        """Return the task's batch."""
        return self.task.collate(examples)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the task's loss, if there is time."""
        self.check()
        return self.task.loss(model, batch)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the task's losses, if there is time."""
        self.check()
        return cast(PrivateTask, self.task).losses(model, batch)


class _Answer(Protocol):
    """What a client answers."""

    @property
    def client(self) -> int:
        """The client's id."""


A = TypeVar("A", bound=_Answer)


@dataclass
class Answers(Generic[A]):
    """Collects the answers of a round, or of steps before the first one.

    Attributes:
        decode: decodes an answer, or raises ValueError.
        reports: the answers that could be decoded.
        rejected: the clients that failed, and the messages that could not be decoded.
        unread: number of messages of each client that were not read, as those before were useless.
        downloads: the clients that were sent all of the weights.
        down: bytes sent to clients.
        up: bytes received from them.
        cause: the latest exception, if there was one.
    """

    decode: Callable[[bytes], A]
    reports: list[A] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    unread: Counter[int] = field(default_factory=Counter)
    downloads: list[int] = field(default_factory=list)
    down: int = 0
    up: int = 0
    cause: BaseException | None = None

    def reject(self, client: int, reason: str, cause: BaseException | None = None) -> None:
        """Add a client that failed, with the reason and the exception."""
        self.rejected.append(Rejection(client, reason))
        self.cause = cause or self.cause


class _Counted:
    """Passes messages on, and counts the bytes of those that were taken."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self.bytes = 0
        self._messages = messages

    def __iter__(self) -> Iterator[bytes]:
        for message in self._messages:
            self.bytes += len(message)
            yield message


@dataclass(frozen=True)
class _Message:
    """What a client is sent in a round: a plan, and the messages of its download."""

    plan: Plan
    weights: _Counted

    @classmethod
    def of(cls, server: Server, client: int, since: int) -> _Message:
        """Make the message for a client that holds the weights of the round `since`."""
        plan = server.plan(client, since=since)
        return cls(plan, _Counted(server.download() if plan.download else ()))


def play(
    server: Server, link: Link, known: Mapping[int, int], elapsed: Callable[[], float]
) -> Round:
    """Play one round: ask its clients, and bring the server to the next weights.

    If fewer clients than the quorum report, the others are asked again, `retries` times at most.

    Args:
        server: the server.
        link: carries the messages.
        known: the round whose weights each client holds. A client that is missing holds the base.
        elapsed: returns the seconds since the run's start.

    Raises:
        QuorumError: too few clients reported. The server has not changed.
    """
    asked, retries = server.sample(), server.federation.retries
    lr = server.optimizer.learning_rates  # `aggregate` may change it
    reports: Sequence[Report] = ()
    answers = Answers(Report.decode)
    for attempt in range(retries + 1):
        have = {report.client for report in reports}
        answers.reports = list(reports)
        left = [client for client in asked if client not in have]
        messages = {client: _Message.of(server, client, known.get(client, 0)) for client in left}
        if isinstance(link, RemoteLink):
            for client, message in messages.items():
                link.start(client, message.plan.encode(), message.weights)
        for message in messages.values():
            _ask(server, link, message, answers)
        try:
            done = server.aggregate(answers.reports, answers.rejected)
            break
        except QuorumError as error:
            if attempt == retries:
                raise error from answers.cause
            logger.warning("%s; asking again", error)
            reports, answers.rejected = error.accepted, list(error.rejected)
    rejected = first_ones(done.rejected, answers.unread)
    for rejection in rejected:
        logger.warning("round %d: %s", done.update.round, rejection)
    return Round(
        reports=done.reports,
        rejected=rejected,
        downloads=tuple(sorted(set(answers.downloads))),
        update=done.update,
        digest=server.digest,
        bytes_down=answers.down,
        bytes_up=answers.up,
        seconds=float(np.float32(elapsed())),
        lr=lr,
    )


def _ask(server: Server, link: Link, message: _Message, answers: Answers[Report]) -> None:
    """Send a client its plan, and add the result to the answers."""
    plan, weights = message.plan, message.weights
    before = len(answers.reports)
    send(link, plan.client, plan.encode(), answers, weights)
    answered = len(answers.reports) > before
    if plan.download and (answered or weights.bytes == server.download_bytes):
        logger.info("round %d: client %d downloads the weights", server.round, plan.client)
        answers.downloads.append(plan.client)
        # a client of this process may share the weights, and then takes no message
        answers.down += server.download_bytes
    else:
        answers.down += weights.bytes


def send(
    link: Link,
    client: int,
    message: bytes,
    answers: Answers[A],
    weights: Iterable[bytes] = (),
) -> None:
    """Send a client a message, and add what comes back to the answers.

    After `FIRST` useless messages the rest is not read.

    Args:
        link: carries the messages.
        client: the client's id.
        message: the encoded message.
        answers: collects the answers.
        weights: the messages of a download, if a plan has one. Default: none.
    """
    answers.down += len(message)
    arrived: list[bytes] = []
    try:
        arrived.extend(link.exchange(client, message, weights))
    except Exception as error:  # one client's failure must not stop the round
        answers.reject(client, f"{type(error).__name__}: {error}", error)
    useless = 0
    for data in arrived:
        answers.up += len(data)
        if useless == FIRST:
            answers.unread[client] += 1
            continue
        try:
            report = answers.decode(data)
            if report.client != client:
                raise ValueError(f"its report says it is of client {report.client}")
            answers.reports.append(report)
        except ValueError as error:
            answers.reject(client, str(error), error)
            useless += 1

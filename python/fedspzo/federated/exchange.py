"""The exchange of messages in a round: clients get plans until enough of them have reported."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
from torch import Tensor, nn

from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.protocol.messages import Report

from .client import Client
from .rejections import QuorumError, Rejection
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


class InProcess:
    """Calls clients that are objects of this process. This is the default link.

    Args:
        clients: the clients, by id.
        timeout: seconds that a client may take. The time is looked at before each evaluation of the
            loss, and when the report is ready. Default None: no limit.
    """

    def __init__(self, clients: Sequence[Client], timeout: float | None = None) -> None:
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
        downloads: the clients that were sent all of the weights.
        down: bytes sent to clients.
        up: bytes received from them.
        cause: the latest exception, if there was one.
    """

    decode: Callable[[bytes], A]
    reports: list[A] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
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
        for client in asked:
            if client not in have:
                _ask(server, link, client, known.get(client, 0), answers)
        try:
            done = server.aggregate(answers.reports, answers.rejected)
            break
        except QuorumError as error:
            if attempt == retries:
                raise error from answers.cause
            logger.warning("%s; asking again", error)
            reports, answers.rejected = error.accepted, list(error.rejected)
    for rejection in done.rejected:
        logger.warning("round %d: %s", done.update.round, rejection)
    return Round(
        reports=done.reports,
        rejected=done.rejected,
        downloads=tuple(sorted(set(answers.downloads))),
        update=done.update,
        digest=server.digest,
        bytes_down=answers.down,
        bytes_up=answers.up,
        seconds=float(np.float32(elapsed())),
        lr=lr,
    )


def _ask(server: Server, link: Link, client: int, since: int, answers: Answers[Report]) -> None:
    """Send a client its plan, and add the result to the answers.

    Args:
        server: the server.
        link: carries the messages.
        client: the client's id.
        since: the round whose weights it holds.
        answers: collects the answers.
    """
    plan = server.plan(client, since=since)
    weights = _Counted(server.download() if plan.download else ())
    before = len(answers.reports)
    send(link, client, plan.encode(), answers, weights)
    answered = len(answers.reports) > before
    if plan.download and (answered or weights.bytes == server.download_bytes):
        logger.info("round %d: client %d downloads the weights", server.round, client)
        answers.downloads.append(client)
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
    for data in arrived:
        answers.up += len(data)
        try:
            report = answers.decode(data)
        except ValueError as error:
            answers.reject(client, str(error), error)
            continue
        if report.client != client:
            answers.reject(client, f"its report says it is of client {report.client}")
        else:
            answers.reports.append(report)

"""A round's messages: sent to its clients, answered by some, and again until enough have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.protocol.messages import Plan, Report

from .client import Client
from .rejections import QuorumError, Rejection
from .server import Server

logger = logging.getLogger(__name__)


class Link(Protocol):
    """How messages reach the clients."""

    def exchange(self, client: int, plan: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        """Send a client its plan, and give what has come from it since it was last asked.

        Args:
            client: its id; whatever is returned did come from this client.
            plan: an encoded `Plan`.
            weights: the messages of a download, if the plan says so; made as they are taken.

        Returns:
            Encoded reports: this plan's, and whatever else was late. None: it did not answer.

        Raises:
            Exception: the client cannot be reached, ran out of time, or failed.
        """


class InProcess:
    """The default link: the clients are objects of this process, and answer at once."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self.clients = clients

    def exchange(self, client: int, plan: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        """As `Link.exchange`."""
        return [self.clients[client].handle(Plan.decode(plan), weights).encode()]


@dataclass
class _Answers:
    """What came of asking: reports that could be read, and who failed otherwise."""

    reports: list[Report] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    downloads: list[int] = field(default_factory=list)
    down: int = 0
    up: int = 0
    cause: Exception | None = None

    def reject(self, client: int, reason: str, cause: Exception | None = None) -> None:
        self.rejected.append(Rejection(client, reason))
        self.cause = cause or self.cause


def play(
    server: Server, link: Link, known: Mapping[int, int], elapsed: Callable[[], float]
) -> Round:
    """One round: ask its clients, and bring the server to the next weights.

    Where fewer than the quorum report, those who have not are asked again, `retries` times.

    Args:
        server: the server.
        link: the way to the clients.
        known: the round whose weights each client holds; one that is not in it holds the base.
        elapsed: seconds since the run's start.

    Raises:
        QuorumError: too few clients reported. The server is as it was.
    """
    asked, retries = server.sample(), server.federation.retries
    lr = server.optimizer.learning_rates  # the round's end may change them
    reports: Sequence[Report] = ()
    answers = _Answers()
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


def _ask(server: Server, link: Link, client: int, since: int, answers: _Answers) -> None:
    """One client's part of a round."""
    plan = server.plan(client, since=since)
    sent = plan.encode()
    answers.down += len(sent)
    if plan.download:
        logger.info("round %d: client %d downloads the weights", server.round, client)
        answers.downloads.append(client)
        answers.down += server.download_bytes
    arrived: list[bytes] = []
    try:
        arrived.extend(link.exchange(client, sent, server.download() if plan.download else ()))
    except Exception as error:  # whatever befalls a client, the round goes on without it
        answers.reject(client, f"{type(error).__name__}: {error}", error)
    for data in arrived:
        answers.up += len(data)
        try:
            report = Report.decode(data)
        except ValueError as error:
            answers.reject(client, str(error), error)
            continue
        if report.client != client:
            answers.reject(client, f"its report says it is of client {report.client}")
        else:
            answers.reports.append(report)

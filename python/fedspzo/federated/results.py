"""A run's results: each round's losses, costs and digest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedspzo.federated.journal.rounds import Spent
from fedspzo.journal.records import Record

from .coefficients import shares
from .rejections import Rejection
from .settings import OptimizerConfig, Weighting
from .strategy import Played, Reply


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """The state of a run after `round` rounds.

    The computation, bytes, skipped steps, seconds and epsilons are totals since the start.

    Attributes:
        round: number of rounds done; 0 before training.
        loss: mean training loss of the round's clients, weighted like their updates. None for round
            0, if every step was skipped, and with privacy.
        eval_loss: the "loss" that `evaluate` returned. None if it was not called, or returned none.
        accuracy: the "accuracy" that `evaluate` returned, or None likewise.
        forwards: computation of all clients, in full forward passes, with the steps before the
            first round.
        bytes_up: bytes of all reports.
        bytes_down: bytes of all plans and downloads.
        fedavg_bytes: bytes that FedAvg would have sent each way: the trainable weights, once for
            each client in each round.
        skipped: number of steps that were skipped, as their losses were not finite.
        digest: digest of the weights that the server and every client hold.
        clients: the clients that were asked in this round.
        rejected: the clients whose reports were not used in this round, with the reasons.
        downloads: the clients that were sent the weights in this round, in place of updates.
        seconds: time from the start to the round's weights. Time that a crash lost is not counted.
        lr: with lr = "auto" the learning rates of the round's steps, one for each block; else None.
        epsilons: epsilon that each client has spent. None without privacy, and in rounds that are
            not evaluated.
    """

    round: int
    loss: float | None
    eval_loss: float | None
    accuracy: float | None
    forwards: float
    bytes_up: int
    bytes_down: int
    fedavg_bytes: int
    skipped: int
    digest: str
    clients: tuple[int, ...]
    seconds: float
    rejected: tuple[Rejection, ...] = ()
    downloads: tuple[int, ...] = ()
    lr: tuple[float, ...] | None = None
    epsilons: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        rounds: the results; the first is of the untrained model.
        optimizer: the step's settings, as a next round would have them.
        records: the journal's records, one for each round.
    """

    rounds: tuple[RoundResult, ...]
    optimizer: OptimizerConfig
    records: tuple[Record, ...]

    @property
    def final(self) -> RoundResult:
        """The last round's result."""
        return self.rounds[-1]


def mean_loss(replies: Sequence[Reply], weighting: Weighting) -> float | None:
    """Return the mean of the clients' losses, weighted like their updates.

    Returns None if no client has a loss.
    """
    losses = {reply.client: reply.loss for reply in replies if reply.loss is not None}
    share = shares({reply.client: reply.examples for reply in replies}, weighting)
    total = sum(share[client] for client in losses)
    if not losses:
        return None
    return sum(share[client] * loss for client, loss in losses.items()) / total


class Totals:
    """Counts the costs of a run, since its start.

    Args:
        trainable_bytes: bytes of the trainable weights.
        spent: the costs of the steps before the first round.

    Attributes:
        forwards: computation of all clients, in full forward passes.
        up: bytes sent by clients.
        down: bytes sent to clients.
        fedavg: bytes that FedAvg would have sent each way.
        skipped: number of skipped steps.
    """

    def __init__(self, trainable_bytes: int, spent: Spent) -> None:
        self.forwards, self.up, self.down = spent.forwards, spent.bytes_up, spent.bytes_down
        self.fedavg = self.skipped = 0
        self._start = time.perf_counter()
        self._trainable_bytes = trainable_bytes

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def add(self, done: Played) -> None:
        """Add a round's costs."""
        self.down += done.bytes_down
        self.up += done.bytes_up
        self.fedavg += self._trainable_bytes * len(done.clients)
        for reply in done.replies:
            self.forwards += reply.forwards
            self.skipped += reply.skipped

    def go_on(self, seconds: float) -> None:
        """Let the clock go on from `seconds`, as a resumed run does."""
        self._start = time.perf_counter() - seconds

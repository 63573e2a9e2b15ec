"""What a run gives: its rounds, what they cost, and where they led."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedspzo.journal.records import Record

from .coefficients import shares
from .rejections import Rejection
from .settings import OptimizerConfig, Weighting
from .strategy import Played, Reply


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """Where a run stands after `round` rounds; 0: before training. Totals are since the start.

    Attributes:
        round: rounds done.
        loss: mean training loss of the round's clients, weighted as their updates; None for round
            0, where every step was skipped, and with privacy.
        eval_loss: the "loss" that `evaluate` gave, where it was called.
        accuracy: its "accuracy".
        forwards: computation of all clients, in full forward passes, since the start.
        bytes_up: bytes of all reports since the start.
        bytes_down: bytes of all plans since the start.
        fedavg_bytes: what FedAvg would have sent since the start, each way: the trainable weights
            once for each client in each round.
        skipped: steps skipped for losses that were not finite, since the start.
        digest: of the weights that server and every client hold.
        clients: who was asked in this round.
        rejected: whose reports were not used in this round, or did not come, and why.
        downloads: who was sent the weights in this round, in place of the updates missed.
        seconds: since the start, when the round's weights were there; what a crash lost is not
            counted.
        lr: with lr = "auto" the learning rates of the round's steps, one a block.
        epsilons: what each client's privacy has spent since the start; None without privacy, and
            in rounds that are not evaluated.
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
        rounds: its rounds, the untrained model first.
        optimizer: its settings, as a next round would have them.
        records: its journal.
    """

    rounds: tuple[RoundResult, ...]
    optimizer: OptimizerConfig
    records: tuple[Record, ...]

    @property
    def final(self) -> RoundResult:
        """The last round."""
        return self.rounds[-1]


def mean_loss(replies: Sequence[Reply], weighting: Weighting) -> float | None:
    """Average the clients' losses, weighted as their updates; None where nobody took a step."""
    losses = {reply.client: reply.loss for reply in replies if reply.loss is not None}
    share = shares({reply.client: reply.examples for reply in replies}, weighting)
    total = sum(share[client] for client in losses)
    if not losses:
        return None
    return sum(share[client] * loss for client, loss in losses.items()) / total


class Totals:
    """What a run has cost so far."""

    def __init__(self, trainable_bytes: int) -> None:
        self.forwards = 0.0
        self.up = self.down = self.fedavg = self.skipped = 0
        self._start = time.perf_counter()
        self._trainable_bytes = trainable_bytes

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def add(self, done: Played) -> None:
        """Count a round."""
        self.down += done.bytes_down
        self.up += done.bytes_up
        self.fedavg += self._trainable_bytes * len(done.clients)
        for reply in done.replies:
            self.forwards += reply.forwards
            self.skipped += reply.skipped

    def go_on(self, seconds: float) -> None:
        """Count the time from `seconds` on."""
        self._start = time.perf_counter() - seconds

"""A federation in one process: the default engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedspzo.blocks import Blocks
from fedspzo.journal import Record
from fedspzo.replica import Replica

from .client import Client, Task, resolve
from .messages import Plan, Report
from .server import Server
from .settings import FederationConfig, OptimizerConfig, check_whole


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """Where a run stands after `round` rounds; 0: before training. Totals are since the start.

    Attributes:
        round: rounds done.
        loss: mean training loss of the round's clients, weighted as their updates; None for round
            0 and where every step was skipped.
        eval_loss: the "loss" that `evaluate` gave, where it was called.
        accuracy: its "accuracy".
        forwards: computation of all clients, in full forward passes, since the start.
        bytes_up: bytes of all reports since the start.
        bytes_down: bytes of all plans since the start.
        fedavg_bytes: what FedAvg would have sent since the start, each way: the trainable weights
            once for each client in each round.
        skipped: steps skipped for losses that were not finite, since the start.
        digest: of the weights that server and every client hold.
        clients: who took part in this round.
        seconds: since the start.
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


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run: its rounds, its settings as they were used, and its journal."""

    rounds: tuple[RoundResult, ...]
    optimizer: OptimizerConfig
    records: tuple[Record, ...]

    @property
    def final(self) -> RoundResult:
        """The last round."""
        return self.rounds[-1]


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    *,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    evaluate_every: int = 1,
    on_round: Callable[[RoundResult], None] | None = None,
    replicas: int = 1,
) -> RunResult:
    """Fine-tune a model over clients that are simulated in this process, one after another.

    Every message is encoded and decoded as if it crossed a network, and its bytes are counted. The
    server and the clients have models of their own; after each round every one of them is brought
    to the new weights and its digest compared with the server's.

    Args:
        blocks: the base model; afterwards it holds the fine-tuned weights.
        task: what is learned.
        examples: each client's examples.
        federation: who takes part, and how often.
        optimizer: how a step is taken.
        evaluate: measures the server's model; may give "loss" and "accuracy".
        evaluate_every: rounds between its calls; it is also called before the first round and
            after the last.
        on_round: called with each result, the first one before training.
        replicas: copies of the model that the clients share. More cost memory and give the same
            result; `federation.clients`: each has its own.

    Returns:
        All results; the same bits for the same arguments.

    Raises:
        ValueError: arguments that do not fit together, naming them.
        DigestError: a participant's weights are not the server's.
    """
    if len(examples) != federation.clients:
        raise ValueError(
            f"examples are of {len(examples)} clients, federation.clients is {federation.clients};"
            " give one sequence of examples a client"
        )
    check_whole("replicas", replicas, 1, federation.clients)
    check_whole("evaluate_every", evaluate_every, 1, 2**32)
    base = Replica(blocks)
    copies = [base.copy() for _ in range(replicas)]
    clients = [
        Client(number, copies[number % replicas], own, task) for number, own in enumerate(examples)
    ]
    server = Server(
        base, federation, resolve(optimizer, clients[0], batch_size=federation.batch_size)
    )
    totals = _Totals(trainable_bytes=base.trainable_bytes)
    results: list[RoundResult] = []

    def finish(loss: float | None, taking_part: tuple[int, ...]) -> None:
        due = server.round % evaluate_every == 0 or server.round == federation.rounds
        measured = evaluate(blocks.model) if evaluate is not None and due else {}
        result = RoundResult(
            round=server.round,
            loss=loss,
            eval_loss=measured.get("loss"),
            accuracy=measured.get("accuracy"),
            forwards=totals.forwards,
            bytes_up=totals.up,
            bytes_down=totals.down,
            fedavg_bytes=totals.fedavg,
            skipped=totals.skipped,
            digest=server.digest,
            clients=taking_part,
            seconds=time.perf_counter() - totals.start,
        )
        results.append(result)
        if on_round is not None:
            on_round(result)

    finish(None, ())
    while server.round < federation.rounds:
        taking_part = server.sample()
        reports = [totals.exchange(server.plan(number), clients[number]) for number in taking_part]
        loss = _mean_loss(reports, server.weights(reports))
        server.aggregate(reports)
        for client in clients[:replicas]:  # one for each copy of the model
            server.check(client.handle(server.plan(client.client, train=False)))
        finish(loss, taking_part)
    return RunResult(
        rounds=tuple(results), optimizer=server.optimizer, records=tuple(server.records)
    )


def _mean_loss(reports: Sequence[Report], weights: Mapping[int, float]) -> float | None:
    losses = {report.client: report.loss for report in reports if report.loss is not None}
    total = sum(weights[client] for client in losses)
    if not losses:
        return None
    return sum(weights[client] * loss for client, loss in losses.items()) / total


class _Totals:
    """What a run has cost so far."""

    def __init__(self, trainable_bytes: int) -> None:
        self.start = time.perf_counter()
        self.forwards = 0.0
        self.up = self.down = self.fedavg = self.skipped = 0
        self._trainable_bytes = trainable_bytes

    def exchange(self, plan: Plan, client: Client) -> Report:
        """Send a plan, get the report, both as bytes."""
        sent = plan.encode()
        received = client.handle(Plan.decode(sent)).encode()
        report = Report.decode(received)
        self.down += len(sent)
        self.up += len(received)
        self.fedavg += self._trainable_bytes
        self.forwards += report.forwards
        self.skipped += report.gradients.local_steps - len(report.gradients.steps)
        return report

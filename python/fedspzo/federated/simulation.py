"""A federation in one process: the default engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fedspzo.blocks.cut import Blocks
from fedspzo.checks import check_whole
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.journal.records import Record
from fedspzo.journal.replica import Replica
from fedspzo.privacy import NOT_PRIVATE, Mechanism, Privacy

from .client import Client, Task, resolve
from .exchange import InProcess, Link, play
from .found_rates import find
from .results import RoundResult, RunResult, Totals, mean_loss
from .server import Server
from .settings import FederationConfig, OptimizerConfig


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
    journal: RunJournal | None = None,
    link: Callable[[Link], Link] | None = None,
    privacy: Privacy | None = None,
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
        journal: keeps each round on disk before the next one begins. Where it has rounds already,
            the run goes on after them, to the same weights and results as if it had not stopped.
        link: makes, from the way to the clients, the one that is used: to lose, delay or change
            messages, say.
        privacy: makes the clients' steps differentially private; `task` is a `PrivateTask` then.

    Returns:
        All results; the same bits for the same arguments, but with `privacy`: its randomness is
        secret.

    Raises:
        ValueError: arguments that do not fit together, naming them.
        DigestError: a participant's weights are not the server's.
        QuorumError: too few clients reported in a round, and again when they were asked again.
    """
    _check(examples, federation, optimizer, privacy)
    check_whole("replicas", replicas, 1, federation.clients)
    check_whole("evaluate_every", evaluate_every, 1, 2**32)
    base = Replica(blocks)
    server = None if journal is None else _resume(base, federation, optimizer, journal, privacy)
    copies = [base.copy() for _ in range(replicas)]
    clients = [
        Client(
            number,
            copies[number % replicas],
            own,
            task,
            privacy=None if privacy is None else Mechanism(privacy, len(own)),
        )
        for number, own in enumerate(examples)
    ]
    if server is None:
        server = _begin(base, clients, federation, optimizer)
        if journal is not None:
            journal.begin(server, privacy)
    totals = Totals(trainable_bytes=base.trainable_bytes)
    results: list[RoundResult] = []
    records: list[Record] = []
    known: dict[int, int] = {}  # the round whose weights a client holds: what it would tell

    def finish(number: int, digest: str, done: Round | None) -> None:
        due = number % evaluate_every == 0 or number == federation.rounds
        measured = None if journal is None else journal.evaluations.get(number)
        if measured is None and evaluate is not None and due and number == server.round:
            values = evaluate(blocks.model)
            measured = EvaluationResult(
                round=number, loss=values.get("loss"), accuracy=values.get("accuracy")
            )
            if journal is not None:
                journal.append(measured)
        if done is not None:
            records.append(server.record(done.update))
            known.update({report.client: done.round for report in done.reports})
        result = RoundResult(
            round=number,
            loss=None if done is None else mean_loss(done.reports, federation.weighting),
            eval_loss=measured.loss if measured else None,
            accuracy=measured.accuracy if measured else None,
            forwards=totals.forwards,
            bytes_up=totals.up,
            bytes_down=totals.down,
            fedavg_bytes=totals.fedavg,
            skipped=totals.skipped,
            digest=digest,
            clients=() if done is None else done.clients,
            seconds=0.0 if done is None else done.seconds,
            rejected=() if done is None else done.rejected,
            downloads=() if done is None else done.downloads,
            lr=None if done is None or server.found is None else done.lr,
            epsilons=_epsilons(clients) if due else None,
        )
        results.append(result)
        if on_round is not None:
            on_round(result)

    past = [] if journal is None else journal.rounds
    finish(0, server.digest if journal is None else journal.header.base, None)
    for done in past:
        totals.add(done)
        _count_past(clients, done, federation)
        finish(done.round + 1, done.digest, done)
    if past:
        totals.go_on(past[-1].seconds)
    if server.round < federation.rounds:
        _warm_up(server, clients, past)
    direct = InProcess(clients)
    way = direct if link is None else link(direct)
    while server.round < federation.rounds:
        done = play(server, way, known, lambda: totals.seconds)
        if journal is not None:
            journal.append(done)
        _follow(server, clients[:replicas])
        totals.add(done)
        finish(server.round, server.digest, done)
    return RunResult(rounds=tuple(results), optimizer=server.optimizer, records=tuple(records))


def _check(
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    privacy: Privacy | None,
) -> None:
    """Raise ValueError for arguments that do not fit together."""
    if len(examples) != federation.clients:
        raise ValueError(
            f"examples are of {len(examples)} clients, federation.clients is {federation.clients};"
            " give one sequence of examples a client"
        )
    if privacy is not None and optimizer.lr == "auto":
        raise ValueError(NOT_PRIVATE)


def _begin(
    base: Replica,
    clients: Sequence[Client],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
) -> Server:
    """The server of a new run: what its settings leave open is measured."""
    settings = resolve(optimizer, clients, batch_size=federation.batch_size)
    found = find(settings, clients, federation) if settings.lr == "auto" else None
    return Server(base, federation, settings, found)


def _resume(
    base: Replica,
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    journal: RunJournal,
    privacy: Privacy | None,
) -> Server | None:
    """The server where the journal ends; None for a new journal."""
    journal.reload()
    if journal.optimizer is None:
        return None
    server = Server(base, federation, journal.optimizer, journal.found_rates())
    journal.check(server, optimizer, privacy)
    server.resume(journal.rounds)
    return server


def _count_past(clients: Sequence[Client], done: Round, federation: FederationConfig) -> None:
    """Charge a round of before to the privacy of those who were asked in it."""
    for number in done.clients:
        account = clients[number].privacy
        if account is not None:
            account.count(federation.batch_size, federation.local_steps)


def _follow(server: Server, clients: Sequence[Client]) -> None:
    """Bring clients, one for each copy of the model, to the new weights; they compare digests."""
    for client in clients:
        plan = server.plan(client.client, since=client.replica.round, train=False)
        client.handle(plan, server.download())


def _warm_up(server: Server, clients: Sequence[Client], past: Sequence[Round]) -> None:
    """Bring clients that took part in the past to where their first step left them."""
    first: dict[int, int] = {}
    for done in past:
        for report in done.reports:
            first.setdefault(report.client, done.round)
    for number, round in first.items():
        plan = server.plan(number, since=server.round, train=False)
        clients[number].warm_up(replace(plan, round=round))


def _epsilons(clients: Sequence[Client]) -> tuple[float, ...] | None:
    spent = tuple(c.privacy.epsilon() for c in clients if c.privacy is not None)
    return spent or None

"""The simulation of a federation in one process: it has the loop over rounds of every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fedspzo.blocks.cut import Blocks
from fedspzo.checks import check_whole
from fedspzo.federated.journal.rounds import EvaluationResult
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.privacy import Privacy

from .exchange import Link
from .fedspzo_strategy import FedSPZO
from .results import RoundResult, RunResult, Totals, mean_loss
from .settings import FederationConfig, OptimizerConfig
from .strategy import Played, Setup, Strategy
from .task import Task

Evaluate = Callable[[nn.Module], Mapping[str, float]]


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    *,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    on_round: Callable[[RoundResult], None] | None = None,
    stop: Callable[[RoundResult], bool] | None = None,
    replicas: int = 1,
    journal: RunJournal | None = None,
    link: Callable[[Link], Link] | None = None,
    privacy: Privacy | None = None,
    strategy: Callable[[Setup], Strategy] | None = None,
) -> RunResult:
    """Fine-tune a model over clients that are simulated in this process, one after another.

    Args:
        blocks: the base model; afterwards it holds the fine-tuned weights.
        task: makes batches of examples, and computes the loss.
        examples: each client's examples.
        federation: the run's settings.
        optimizer: the settings of a client's step.
        evaluate: measures the server's model. It may return "loss" and "accuracy". Default None:
            no evaluation.
        evaluate_every: number of rounds from one evaluation to the next. The model is also
            evaluated before the first round and after the last. Default 1.
        on_round: called with each result; the first one comes before training.
        stop: called after `on_round`, with the same result. True ends the run after this round.
        replicas: number of copies of the model, which the clients share. More copies cost memory
            and give the same result. With `federation.clients` each client has its own. Default 1.
        journal: keeps each round on disk before the next one begins. If it has rounds, the run
            goes on after them, to the same weights and results as if it had not stopped.
        link: takes the link to the clients, and returns the one to use. A test can so lose, delay
            or change messages.
        privacy: makes the clients' steps differentially private. `task` has to be a `PrivateTask`.
        strategy: begins another method's run in place of FedSPZO's (`fedspzo.baselines`). It
            cannot be combined with `replicas`, `journal`, `link` or `privacy`.

    Returns:
        All results. The same arguments give the same bits, except with `privacy`, whose randomness
        is secret.

    Raises:
        ValueError: arguments do not fit together; the message names them.
        DigestError: a client's weights differ from the server's.
        QuorumError: too few clients reported in a round, also after the retries.
    """
    setup = Setup(blocks, task, examples, federation, optimizer)
    check_whole("evaluate_every", evaluate_every, 1, 2**32)
    if strategy is None:
        rounds: Strategy = FedSPZO(
            setup, replicas=replicas, journal=journal, link=link, privacy=privacy
        )
    else:
        options = {"journal": journal, "link": link, "privacy": privacy}
        given = [name for name, value in options.items() if value is not None]
        if replicas != 1 or given:
            name = given[0] if given else "replicas"
            raise ValueError(f"{name} is given, but is FedSPZO's alone; leave it, or strategy, out")
        rounds = strategy(setup)
    return _run(rounds, setup, evaluate, evaluate_every, on_round, stop)


def _run(
    strategy: Strategy,
    setup: Setup,
    evaluate: Evaluate | None,
    evaluate_every: int,
    on_round: Callable[[RoundResult], None] | None,
    stop: Callable[[RoundResult], bool] | None,
) -> RunResult:
    """Run all rounds by a strategy. Report those of a resumed run's journal, then play the others.

    The other arguments are those of `run`.
    """
    federation = setup.federation
    totals = Totals(strategy.trainable_bytes, strategy.spent)
    results: list[RoundResult] = []

    def finish(done: Played | None) -> bool:
        """Add a round's result. Return True if the run ends with it."""
        number = len(results)
        due = number % evaluate_every == 0 or number == federation.rounds
        measured = strategy.evaluations.get(number)
        here = number >= strategy.resumed  # the model holds this round's weights
        if measured is None and evaluate is not None and due and here:
            values = evaluate(setup.blocks.model)
            measured = EvaluationResult(
                round=number, loss=values.get("loss"), accuracy=values.get("accuracy")
            )
            strategy.keep(measured)
        result = RoundResult(
            round=number,
            loss=None if done is None else mean_loss(done.replies, federation.weighting),
            eval_loss=measured.loss if measured else None,
            accuracy=measured.accuracy if measured else None,
            forwards=totals.forwards,
            bytes_up=totals.up,
            bytes_down=totals.down,
            fedavg_bytes=totals.fedavg,
            skipped=totals.skipped,
            digest=strategy.base if done is None else done.digest,
            clients=() if done is None else done.clients,
            seconds=0.0 if done is None else done.seconds,
            rejected=() if done is None else done.rejected,
            downloads=() if done is None else done.downloads,
            lr=None if done is None else done.lr,
            epsilons=strategy.epsilons() if due else None,
        )
        results.append(result)
        if on_round is not None:
            on_round(result)
        return stop is not None and stop(result)

    ended = finish(None)
    for done in strategy.past():
        totals.add(done)
        ended = finish(done)
    if strategy.resumed:
        totals.go_on(results[-1].seconds)
    for number in range(strategy.resumed, federation.rounds):
        if ended:
            break
        done = strategy.play(number, lambda: totals.seconds)
        totals.add(done)
        ended = finish(done)
    return RunResult(rounds=tuple(results), optimizer=strategy.optimizer, records=strategy.records)

"""What the baselines share with `federated.run`: its options, its draws and its tally."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict, Unpack

from torch import nn

from fedspzo.blocks.cut import Blocks
from fedspzo.federated import Client, FederationConfig, OptimizerConfig, RoundResult, RunResult
from fedspzo.federated.client import Task
from fedspzo.federated.partition import draw
from fedspzo.federated.protocol.updates import sample_seed
from fedspzo.journal.replica import Replica


class Options(TypedDict, total=False):
    """The options of `federated.run` that every method takes."""

    evaluate: Callable[[nn.Module], Mapping[str, float]] | None
    evaluate_every: int
    on_round: Callable[[RoundResult], None] | None


class Method(Protocol):
    """How every method is called."""

    def __call__(
        self,
        blocks: Blocks,
        task: Task,
        examples: Sequence[Sequence[Any]],
        federation: FederationConfig,
        optimizer: OptimizerConfig,
        **options: Unpack[Options],
    ) -> RunResult:
        """Fine-tune `blocks.model` in place.

        Args:
            blocks: the model, cut as for FedSPZO; methods that know no blocks take it whole.
            task: what is learned.
            examples: each client's own.
            federation: who takes part, how often; the method's own protocol overrides `seeds`.
            optimizer: the learning rate and, for zeroth-order methods, eps, sides, directions.
            options: `evaluate`, `evaluate_every`, `on_round`.
        """


def make_clients(
    replica: Replica,
    examples: Sequence[Sequence[Any]],
    task: Task,
    federation: FederationConfig,
) -> list[Client]:
    """The clients, on one copy of the model, in turn.

    Raises:
        ValueError: not one sequence of examples a client, or an empty one.
    """
    if len(examples) != federation.clients:
        raise ValueError(
            f"examples has {len(examples)} entries, but clients is {federation.clients};"
            " give one sequence of examples a client"
        )
    return [Client(number, replica, own, task) for number, own in enumerate(examples)]


def sample(federation: FederationConfig, round: int) -> tuple[int, ...]:
    """The clients of a round, ascending: those that `federated.run` draws for the same seed."""
    drawn = draw(federation.clients, federation.participants, sample_seed(federation.seed, round))
    return tuple(sorted(int(client) for client in drawn))


def shares(federation: FederationConfig, examples: Mapping[int, int]) -> dict[int, float]:
    """Each client's share of the round's update, from its number of examples; they sum to 1."""
    uniform = federation.weighting == "uniform"
    counts = {client: 1 if uniform else count for client, count in examples.items()}
    return {client: count / sum(counts.values()) for client, count in counts.items()}


class Tally:
    """What a run has cost and where it stands: the rounds' results.

    Attributes:
        forwards: computation so far, in full forward passes.
        up: bytes sent by clients so far.
        down: bytes sent to clients so far.
        skipped: steps skipped so far, for losses that were not finite.
        results: the rounds, the untrained model first.
    """

    def __init__(
        self, model: nn.Module, trainable_bytes: int, rounds: int, **options: Unpack[Options]
    ) -> None:
        self.forwards = 0.0
        self.up = self.down = self.skipped = 0
        self.results: list[RoundResult] = []
        self._model = model
        self._trainable_bytes = trainable_bytes
        self._fedavg_bytes = 0
        self._rounds = rounds
        self._options = options
        self._start = time.perf_counter()

    def finish(
        self, digest: str, losses: Mapping[int, float | None], weights: Mapping[int, float]
    ) -> None:
        """End a round: evaluate where it is due, and tell.

        Args:
            digest: of the global weights after the round.
            losses: mean training loss of each of its clients; None: every step was skipped.
            weights: their shares of the update.
        """
        number = len(self.results)
        self._fedavg_bytes += self._trainable_bytes * len(losses)
        every = self._options.get("evaluate_every", 1)
        evaluate = self._options.get("evaluate")
        due = number % every == 0 or number == self._rounds
        measured = evaluate(self._model) if evaluate is not None and due else {}
        known = {client: loss for client, loss in losses.items() if loss is not None}
        total = sum(weights[client] for client in known)
        result = RoundResult(
            round=number,
            loss=sum(weights[c] * loss for c, loss in known.items()) / total if known else None,
            eval_loss=measured.get("loss"),
            accuracy=measured.get("accuracy"),
            forwards=self.forwards,
            bytes_up=self.up,
            bytes_down=self.down,
            fedavg_bytes=self._fedavg_bytes,
            skipped=self.skipped,
            digest=digest,
            clients=tuple(losses),
            seconds=time.perf_counter() - self._start,
        )
        self.results.append(result)
        if on_round := self._options.get("on_round"):
            on_round(result)

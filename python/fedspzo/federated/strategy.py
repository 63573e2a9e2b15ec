"""The interface of a method of federated training, by which `federated.run` runs it.

`run` has the only loop over rounds: it evaluates, counts costs, and reports the results. A
`Strategy` plays the rounds: it sends messages to the clients, lets them work, and aggregates their
answers. FedSPZO's is in `fedspzo_strategy`; others are in `fedspzo.baselines`. To add one, see
docs/baselines.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fedspzo.blocks.cut import Blocks
from fedspzo.federated.journal.rounds import EvaluationResult, Spent
from fedspzo.journal.records import Record
from fedspzo.journal.replica import Replica
from fedspzo.privacy import Mechanism, Privacy

from .client import Client
from .rejections import Rejection
from .settings import FederationConfig, OptimizerConfig
from .task import Task


@dataclass(frozen=True, eq=False)
class Setup:
    """The model, task, examples and settings of a run.

    Attributes:
        blocks: the base model; a run leaves the fine-tuned weights in it.
        task: makes batches of examples, and computes the loss.
        examples: each client's examples.
        federation: the run's settings.
        optimizer: the settings of a client's step.

    Raises:
        ValueError: there is not one sequence of examples for each client.
    """

    blocks: Blocks
    task: Task
    examples: Sequence[Sequence[Any]]
    federation: FederationConfig
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        if len(self.examples) != self.federation.clients:
            raise ValueError(
                f"examples are of {len(self.examples)} clients, federation.clients is"
                f" {self.federation.clients}; give one sequence of examples a client"
            )

    def clients(self, copies: Sequence[Replica], privacy: Privacy | None = None) -> list[Client]:
        """Create the clients.

        Args:
            copies: models that the clients share, in turn.
            privacy: makes the clients' steps differentially private. Default None: not private.
        """
        return [
            Client(
                number,
                copies[number % len(copies)],
                own,
                self.task,
                privacy=None if privacy is None else Mechanism(privacy, len(own)),
            )
            for number, own in enumerate(self.examples)
        ]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The summary of a client's part in a round.

    Attributes:
        client: the client's id.
        examples: the client's number of examples.
        loss: mean training loss of its steps. None: it took no step, or its loss is private.
        forwards: its computation, in full forward passes.
        skipped: number of steps that it skipped, as their losses were not finite.
    """

    client: int
    examples: int
    loss: float | None
    forwards: float
    skipped: int


@dataclass(frozen=True, kw_only=True)
class Played:
    """The summary of a round that was played.

    Attributes:
        replies: one for each client whose answer was used, ascending by client.
        clients: the clients that were asked, ascending.
        bytes_down: bytes sent to clients.
        bytes_up: bytes sent by clients.
        digest: digest of the global weights after the round.
        seconds: time from the run's start to the round's weights.
        rejected: the clients whose answers were not used, or did not come, with the reasons.
        downloads: the clients that were sent the weights in place of updates.
        lr: the learning rates of the round's steps, one for each block. None if they are constant.
    """

    replies: tuple[Reply, ...]
    clients: tuple[int, ...]
    bytes_down: int
    bytes_up: int
    digest: str
    seconds: float
    rejected: tuple[Rejection, ...] = ()
    downloads: tuple[int, ...] = ()
    lr: tuple[float, ...] | None = None


class Strategy(ABC):
    """Plays the rounds of one run. Calling the class with a `Setup` begins the run.

    A subclass defines `play`, and its constructor sets `optimizer`, `base` and `trainable_bytes`.
    The other attributes and methods have defaults: they serve runs with a journal or privacy.

    Attributes:
        optimizer: the step's settings, as a next round would have them.
        base: digest of the weights before the first round.
        trainable_bytes: bytes of the trainable weights.
        spent: the costs of the steps before the first round. Default: none.
        resumed: number of rounds that were done before the run was resumed. Default 0.
        evaluations: evaluations that were done before the run was resumed, by round.
    """

    optimizer: OptimizerConfig
    base: str
    trainable_bytes: int
    spent: Spent = Spent()
    resumed: int = 0
    evaluations: Mapping[int, EvaluationResult] = MappingProxyType({})

    @abstractmethod
    def play(self, round: int, clock: Callable[[], float]) -> Played:
        """Play a round: bring the model of `Setup.blocks` to the next global weights.

        Args:
            round: the round, from 0; its clients are `sample(federation, round)`.
            clock: returns the seconds since the run's start.
        """

    @property
    def records(self) -> tuple[Record, ...]:
        """The journal records that lead from the base to the current weights. Default: none."""
        return ()

    def past(self) -> Iterator[Played]:
        """Yield the rounds that were done before the run was resumed, in order. Default: none."""
        yield from ()

    def keep(self, measured: EvaluationResult) -> None:  # noqa: B027
        """Keep an evaluation. Does nothing by default."""

    def epsilons(self) -> tuple[float, ...] | None:
        """Return the epsilon that each client has spent since the start; None without privacy."""
        return None

"""What a method of federated training has to say, so that `federated.run` can run it.

`run` has the only loop over rounds: it evaluates, counts, and reports the results. A `Strategy`
makes the rounds: it decides what the clients are sent, what they do, and what becomes of their
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
from fedspzo.federated.journal.rounds import EvaluationResult
from fedspzo.journal.records import Record
from fedspzo.journal.replica import Replica
from fedspzo.privacy import Mechanism, Privacy

from .client import Client, Task
from .rejections import Rejection
from .settings import FederationConfig, OptimizerConfig


@dataclass(frozen=True, eq=False)
class Setup:
    """What a run is given.

    Attributes:
        blocks: the base model; a run leaves the fine-tuned weights in it.
        task: what is learned.
        examples: each client's examples.
        federation: who takes part, and how often.
        optimizer: how a step is taken.

    Raises:
        ValueError: there is not one sequence of examples a client.
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
        """Make the clients.

        Args:
            copies: models that the clients share, in turn.
            privacy: makes the clients' steps differentially private.
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
    """What a client's part in a round came to.

    Attributes:
        client: its id.
        examples: how many it has.
        loss: the mean training loss of its steps; None: it took none, or does not tell.
        forwards: its computation, in full forward passes.
        skipped: steps that it skipped, for losses that were not finite.
    """

    client: int
    examples: int
    loss: float | None
    forwards: float
    skipped: int


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a round came to.

    Attributes:
        replies: of the clients whose answers were used, by client.
        clients: who was asked, ascending.
        bytes_down: bytes sent to clients.
        bytes_up: bytes sent by clients.
        digest: of the global weights afterwards.
        seconds: from the run's start to the round's weights.
        rejected: whose answers were not used, or did not come, and why.
        downloads: who was sent the weights in place of the updates missed.
        lr: the learning rates of the round's steps, one a block, where they change by round.
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
    """Makes the rounds of one run. Its class, called with a `Setup`, begins the run.

    A subclass defines `play` and sets the first three attributes when it is made. What follows
    them is for a run that is kept in a journal, or private, and has defaults.

    Attributes:
        optimizer: the step's settings, as a next round would have them.
        base: the digest of the weights before the first round.
        trainable_bytes: bytes of the trainable weights.
        resumed: how many rounds were done before; `past` gives them.
        evaluations: the evaluations that were done before, by round.
    """

    optimizer: OptimizerConfig
    base: str
    trainable_bytes: int
    resumed: int = 0
    evaluations: Mapping[int, EvaluationResult] = MappingProxyType({})

    @abstractmethod
    def play(self, round: int, clock: Callable[[], float]) -> Played:
        """Make a round: bring the model of `Setup.blocks` to the next global weights.

        Args:
            round: its number, from 0; its clients are `sample(federation, round)`.
            clock: gives the seconds since the run's start.
        """

    @property
    def records(self) -> tuple[Record, ...]:
        """The journal records that lead from the base to the current weights, if there are any."""
        return ()

    def past(self) -> Iterator[Played]:
        """Give the rounds that were done before, in their order."""
        yield from ()

    def keep(self, measured: EvaluationResult) -> None:  # noqa: B027
        """Take note of an evaluation. Does nothing by default."""

    def epsilons(self) -> tuple[float, ...] | None:
        """Tell what each client's privacy has spent since the start; None without privacy."""
        return None

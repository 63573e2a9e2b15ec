"""How every baseline is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedspzo import federated
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult, Setup, Strategy, Task


def unchanged(setup: Setup) -> Setup:
    """Return the setup."""
    return setup


@dataclass(frozen=True)
class Method:
    """A baseline, called as `federated.run` is: the same clients, batches, loop and results.

    Attributes:
        adapt: makes the method's setup from the given one: its model, settings, examples.
        strategy: begins the method's run from that. None: FedSPZO's rounds, of plans and reports.
    """

    adapt: Callable[[Setup], Setup] = unchanged
    strategy: Callable[[Setup], Strategy] | None = None

    def __call__(
        self,
        blocks: Blocks,
        task: Task,
        examples: Sequence[Sequence[Any]],
        federation: FederationConfig,
        optimizer: OptimizerConfig,
        **options: Any,
    ) -> RunResult:
        """Fine-tune `blocks.model` in place.

        Args:
            blocks: the model, cut as for FedSPZO; methods that know no blocks take it whole.
            task: what is learned.
            examples: each client's own.
            federation: who takes part, how often; the method's own protocol overrides `seeds`.
            optimizer: the learning rate and, for zeroth-order methods, eps, sides, directions.
            options: those of `federated.run`.
        """
        own = self.adapt(Setup(blocks, task, examples, federation, optimizer))
        return federated.run(
            own.blocks,
            own.task,
            own.examples,
            own.federation,
            own.optimizer,
            strategy=self.strategy,
            **options,
        )

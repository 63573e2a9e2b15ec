"""The interface of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedspzo import federated
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult, Setup, Strategy, Task


def unchanged(setup: Setup) -> Setup:
    """Return the setup as it is."""
    return setup


@dataclass(frozen=True)
class Method:
    """A baseline. It is called like `federated.run`, with the same clients, batches and results.

    Attributes:
        adapt: returns the method's setup for a given one, with its model, settings and examples.
            Default: the setup as it is.
        strategy: begins the method's run with that setup. Default None: FedSPZO's strategy.
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
            blocks: the model, cut as for FedSPZO. Methods without blocks ignore the cut.
            task: makes batches of examples, and computes the loss.
            examples: each client's examples.
            federation: the run's settings. A method may override some, such as `seeds`.
            optimizer: the learning rate and, for zeroth-order methods, `eps`, `sides` and
                `perturbations`.
            options: further options of `federated.run`.

        Returns:
            The result of `federated.run`.
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

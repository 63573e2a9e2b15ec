"""What a client trains on: it makes batches of examples, and computes the loss."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """Turns examples into batches, and computes the loss to minimize."""

    def collate(self, examples: list[Any]) -> Any:
        """Return a batch of these examples."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the model's loss on a batch, a scalar."""


class PrivateTask(Task, Protocol):
    """Computes a loss for each example, as differential privacy requires."""

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of each example of a batch, (B,). No loss depends on another example."""

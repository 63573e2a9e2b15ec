"""What takes the model's and its weights' places where a step is taken again from its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fedspzo.blocks.activation_replay import ActivationReplay


class KnownLosses:
    """Gives the losses of a step's evaluations, in order.

    Args:
        losses: the losses, (evaluations,).
    """

    def __init__(self, losses: Tensor) -> None:
        self._losses = losses
        self._given = 0

    def __call__(self) -> Tensor:
        """Return the next loss.

        Raises:
            ValueError: there is none left.
        """
        if self._given == len(self._losses):
            raise ValueError(
                f"losses has {self._given}, but the step evaluates more; give them all"
            )
        self._given += 1
        return self._losses[self._given - 1]

    def finish(self) -> None:
        """Raise ValueError unless all losses were given."""
        if self._given != len(self._losses):
            raise ValueError(
                f"losses has {len(self._losses)}, but the step evaluates {self._given}; give the"
                " losses of this step"
            )


class NoReplay(ActivationReplay):
    """Stands for the activation replay of a model that is not run."""

    def evaluated(self, evaluate: Callable[[], Tensor]) -> Tensor:
        """Return what `evaluate` returns."""
        return evaluate()


class Still:
    """Stands for a block whose weights stay as they are."""

    def move(self, target: Mapping[int, float]) -> None:
        """Do nothing."""

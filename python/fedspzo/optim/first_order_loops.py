"""Errors for training loops that were written for gradients, before they compute any."""

from __future__ import annotations

from typing import NoReturn


class RefusesFirstOrderLoops:
    """Answers the calls by which such loops show themselves."""

    def train(self) -> NoReturn:
        """Raise RuntimeError: transformers' Trainer calls this before its first backward pass."""
        raise RuntimeError(
            "the loop calls optimizer.train(), as transformers' Trainer does before it calls"
            " backward(), but SPZO takes a closure and no gradients; use SPZOTrainer of"
            " fedspzo.integrations.transformers in place of Trainer, or its SPZOTrainerMixin before"
            " a trainer that derives from it. In a loop of your own leave the call out"
        )

    @property
    def _step_supports_amp_scaling(self) -> NoReturn:
        """Raise RuntimeError: torch's GradScaler asks for this before it looks for gradients."""
        raise RuntimeError(
            "a GradScaler takes the step, but SPZO has no gradients to scale; call"
            " optimizer.step(closure) directly, and use bfloat16 autocast or a float16 model"
        )

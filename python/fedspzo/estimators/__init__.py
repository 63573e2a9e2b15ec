"""The estimators: where a step evaluates the loss, and what the losses say of the gradient.

One class a file, registered by name. Nothing here knows models or how weights are moved, and
nothing heavy is imported, so that settings can be checked at once. May import the root's modules.
"""

from __future__ import annotations

from . import anchored, balanced, coupled, mezo  # each registers its estimator
from .base import ESTIMATORS, Estimator, find, register
from .step_report import StepReport

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "StepReport",
    "anchored",
    "balanced",
    "coupled",
    "find",
    "mezo",
    "register",
]

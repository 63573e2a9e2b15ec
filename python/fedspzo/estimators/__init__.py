"""The estimators: the points where a step evaluates the loss, and the gradients that follow.

Each is a class in a file of its own, registered by name. An estimator knows neither models nor
how weights are moved. It imports nothing heavy, so that settings can be checked at once. May
import the root's modules.
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

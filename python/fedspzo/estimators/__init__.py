"""The estimators: where a step evaluates the loss, and what the losses say of the gradient.

May import the root's modules. Knows neither models nor how weights are moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedspzo.lazy import lazy_names

if TYPE_CHECKING:
    from .step_report import StepReport

__all__ = ["StepReport"]

__getattr__ = lazy_names(__name__, {"StepReport": ".step_report"})

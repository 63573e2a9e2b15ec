"""The words that settings choose from. This module imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Sides = Literal["one", "two"]
Rounding = Literal["nearest", "stochastic"]
EvaluationMode = Literal["in_place", "layerwise"]
Stream = Literal["normal-v1", "rademacher-v1"]

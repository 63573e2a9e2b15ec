"""The words that settings choose from. Nothing heavy is imported here."""

from __future__ import annotations

from typing import Literal

Sides = Literal["one", "two"]
Rounding = Literal["nearest", "stochastic"]
EvaluationMode = Literal["in_place", "layerwise"]

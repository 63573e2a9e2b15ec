"""The optimizer `SPZO` and its param groups.

May import `auto_lr`, `evaluation`, `estimators` and `blocks`.
"""

from __future__ import annotations

from .spzo import SPZO

__all__ = ["SPZO"]

"""Formats a number of bytes for people."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """Format a number of bytes with three digits and a decimal unit: 1234 gives '1.23 kB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"

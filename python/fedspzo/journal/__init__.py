"""The journal: the only way in which global weights change, on disk and applied.

May import `blocks`, `estimators` (a step's report) and the root's modules; knows no federation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedspzo.lazy import lazy_names

if TYPE_CHECKING:
    from .header import Header
    from .reader import JournalError
    from .records import Record, Terms, apply, digest
    from .replica import Replica
    from .steps import StepJournal

__all__ = [
    "Header",
    "JournalError",
    "Record",
    "Replica",
    "StepJournal",
    "Terms",
    "apply",
    "digest",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Header": ".header",
        "JournalError": ".reader",
        "Record": ".records",
        "Replica": ".replica",
        "StepJournal": ".steps",
        "Terms": ".records",
        "apply": ".records",
        "digest": ".records",
    },
)

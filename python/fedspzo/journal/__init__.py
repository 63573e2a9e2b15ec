"""The journal: the records by which global weights change, on disk and applied to a model.

`records` holds the terms of a round and applies them, `header` names the weights that they start
from, `writer` and `reader` keep both on disk, `damage` and `salvage` find what is whole of a
damaged file, `steps` journals central training, and `replica` follows a journal. May import
`blocks`, `estimators` (for a step's report) and the root's modules; the journal knows no
federation.
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

"""Salvage: it writes the part of a damaged journal that its checksums vouch for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from fedspzo.errors import InputError
from fedspzo.files import file_atomic

from .damage import Damage, rounds_in
from .reader import JournalReader


@dataclass(frozen=True, kw_only=True)
class Salvaged:
    """The result of a salvage.

    Attributes:
        rounds: the number of rounds that were kept.
        size: the size of the whole records, in bytes.
        torn: the number of bytes of a torn record that was left out.
        damage: where the journal is damaged. None: it is not.
    """

    rounds: int
    size: int
    torn: int
    damage: Damage | None


def salvage(journal: Path, output: Path) -> Salvaged:
    """Write a journal's whole records, up to the first whose checksums fail, as a new journal.

    The new file has the same bytes up to there, so its run can go on. It is on disk when this
    returns.

    Args:
        journal: the file, which is not changed.
        output: a new file in an existing folder.

    Raises:
        InputError: the journal cannot be read, or its header is damaged; or the output exists or
            cannot be written. No output is left then.
    """
    found = examine(journal)
    if output.exists():
        raise InputError(f"output '{output}' is there already; name a new file after -o")
    try:
        _copy(journal, output, found.size)
    except OSError as error:
        raise InputError(
            f"output '{output}' cannot be written ({error.strerror}); name another file after -o"
        ) from None
    return found


def salvage_in_place(journal: Path) -> Path | None:
    """Replace a damaged journal by its whole records. A copy of the damaged file is kept beside it.

    A journal that is not damaged is left as it is. Warns of the damage.

    Args:
        journal: the file. No other process writes to it.

    Returns:
        The path of the copy. None: the journal is not damaged.

    Raises:
        InputError: the journal cannot be read, or its header is damaged.
        OSError: a file cannot be written; the journal is as before.
    """
    reader = JournalReader(journal, salvage=True)
    for _ in reader:
        pass
    if reader.broken is None:
        return None
    names = (f"{journal.name}.damaged{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
    copy = next(path for path in map(journal.with_name, names) if not path.exists())
    _copy(journal, copy, journal.stat().st_size)
    _copy(journal, journal, reader.end)
    reader.warn()
    return copy


def examine(journal: Path) -> Salvaged:
    """Return what a salvage of a journal would keep.

    Raises:
        InputError: the journal cannot be read, or its header is damaged.
    """
    reader = JournalReader(journal, salvage=True)
    rounds = sum(rounds_in(entry.kind, entry.body) for entry in reader)
    return Salvaged(rounds=rounds, size=reader.end, torn=reader.torn, damage=reader.broken)


def _copy(journal: Path, output: Path, size: int) -> None:
    """Write the first `size` bytes of a journal to `output`, as a whole."""
    with journal.open("rb") as source, file_atomic(output) as file:
        while size and (part := source.read(min(size, 2**20))):
            file.write(part)
            size -= len(part)

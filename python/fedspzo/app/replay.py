"""Replay and verification: they rebuild a round's weights from a journal, or compare weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from fedspzo.errors import InputError
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.files import folder_atomic, make_folder
from fedspzo.journal.records import Record, apply, digest, merged

from . import weights
from .arguments import check_new_folder
from .run_folder import MODEL
from .saved_task import SavedTask
from .weights import Weights, is_tensors

TERMS_A_PASS = 4096
"""Number of a block's terms that one pass over the weights applies."""


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    Attributes:
        weights: the weights.
        round: number of rounds that led to the weights.
        digest: digest of the weights.
        checked: True if the journal has that round's digest, which equals this one then.
        task: the task of the model, for its folder. None: the journal does not have it, or the base
            is tensors alone.
    """

    weights: Weights
    round: int
    digest: str
    checked: bool
    task: SavedTask | None = None


def replay(
    base: str,
    journal: Path,
    *,
    round: int | None = None,
    salvage: bool = False,
    on_round: Callable[[int], None] | None = None,
    terms: int = TERMS_A_PASS,
) -> Replayed:
    """Rebuild the weights after `round` rounds of a journal, bit for bit.

    They are the same on every backend, with any number of threads, and however the weights are
    sharded. Their digest is compared with the journal's of that round.

    Args:
        base: the model that the journal starts from: a folder, a hub id, "demo", or a safetensors
            file.
        journal: the file, which is not changed.
        round: number of rounds. Default None: all. A damaged journal gives the rounds before the
            damage by number, with a warning.
        salvage: take all rounds before the damage for all, with a warning. Default False.
        on_round: called with the number of rounds done, after each pass over the weights.
        terms: number of a block's terms that one pass applies (`journal.merged`).

    Raises:
        InputError: the journal or the base cannot be read, they do not belong together, or there is
            no such round.
    """
    log = DecodedJournal(journal, salvage=salvage or round is not None)
    last = rounds(log)
    round = last if round is None else round
    log.check_round("round", round, last)
    log.reader.warn()
    found = weights.load(base, log.header)
    now = digest(found.named.items())
    if now != log.header.base:
        after = f", after {log.first} rounds" if log.first else ""
        raise InputError(
            f"'{base}': has weights with digest {now}, the journal starts from {log.header.base}"
            f" (source: {log.header.source!r}{after}); give the base model of '{journal}'"
        )
    now, checked = advance(found.named, log, round, on_round=on_round, terms=terms)
    task = None
    known = (log.header.run or {}).get("task")
    if known is not None and log.header.model is not None and not is_tensors(base):
        task = SavedTask.from_header(journal, known, log.header.model, now)
    return Replayed(found, round, now, checked=checked, task=task)


def advance(
    named: Mapping[str, Tensor],
    log: DecodedJournal,
    round: int,
    *,
    on_round: Callable[[int], None] | None = None,
    terms: int = TERMS_A_PASS,
) -> tuple[str, bool]:
    """Bring the weights that a journal starts from to those of a round, in place.

    Args:
        named: the model's parameters by name.
        log: the journal.
        round: number of rounds.
        on_round: called with the number of rounds done, after each pass over the weights.
        terms: number of a block's terms that one pass applies.

    Returns:
        The digest of the weights, and whether the journal has it to compare with.

    Raises:
        InputError: the weights have another digest than the journal says.
    """
    groups = log.header.groups(named)
    expected: str | None = log.header.base

    def records() -> Iterator[Record]:
        nonlocal expected
        for record, known in log.records():
            if record.round >= round:
                return
            expected = known
            yield record

    for record in merged(records(), groups, terms=terms):
        apply(record, groups)
        if on_round is not None:
            on_round(record.round + 1)
    now = digest(named.items())
    if expected not in (None, now):
        raise InputError(
            f"{log.reader.path}: round {round} replays to weights with digest {now}, not {expected}"
            " as it says; use the release that wrote it"
        )
    return now, expected is not None


def save(replayed: Replayed, output: Path) -> None:
    """Write the weights to a new folder, with config and tokenizer if the base has them.

    Raises:
        InputError: the folder exists and is not empty, or cannot be written.
    """
    check_output(output)
    try:
        make_folder(output.parent)
        with folder_atomic(output) as temporary:
            replayed.weights.save(temporary)
            if replayed.task is not None:
                replayed.task.write(temporary)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"output '{output}' cannot be written ({getattr(error, 'strerror', None) or error});"
            " name another folder after -o"
        ) from None


def check_output(output: Path) -> None:
    """Raise InputError unless the weights can be written to a new folder `output`."""
    check_new_folder(output, "name a new folder after -o")


def rounds(log: DecodedJournal) -> int:
    """Count the rounds of a journal's run. Check each record."""
    return log.first + sum(1 for _ in log.digests()) - 1


@dataclass(frozen=True)
class Verdict:
    """The result of comparing weights with a journal.

    Attributes:
        matches: True if the weights are those of the round asked for.
        digest: digest of the weights.
        expected: the journal's digest of that round. None: it has none.
        round: the round asked for.
        found: the latest round that has these weights, or None.
    """

    matches: bool
    digest: str
    expected: str | None
    round: int
    found: int | None


def verify(
    folder: str, journal: Path, *, round: int | None = None, salvage: bool = False
) -> Verdict:
    """Compare a model's weights with a journal's digests. Nothing is replayed.

    Args:
        folder: a model's folder, or a run's folder that contains `model`.
        journal: the journal's file.
        round: the round to compare with. Default None: the last one. A damaged journal gives the
            rounds before the damage by number, with a warning.
        salvage: take the last round before the damage for the last one. Default False.

    Raises:
        InputError: the model or the journal cannot be read, or there is no such round.
    """
    log = DecodedJournal(journal, salvage=salvage or round is not None)
    digests = log.known()
    last = max(digests)
    round = last if round is None else round
    log.check_round("round", round, last)
    log.reader.warn()
    if not Path(folder).exists():
        raise InputError(f"'{folder}': there is no such folder; give a model's or a run's")
    inner = Path(folder) / MODEL
    found = weights.load(str(inner) if inner.is_dir() else folder, log.header)
    now = digest(found.named.items())
    same = [number for number, known in digests.items() if known == now]
    return Verdict(
        matches=digests[round] == now,
        digest=now,
        expected=digests[round],
        round=round,
        found=same[-1] if same else None,
    )

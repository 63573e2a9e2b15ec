"""From a base model and a journal to the weights of any round; and from weights to their round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from fedspzo.errors import InputError
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.files import folder_atomic
from fedspzo.journal.records import Record, apply, digest, merged

from . import weights
from .run_folder import MODEL
from .weights import Weights

TERMS_A_PASS = 4096


@dataclass(frozen=True)
class Replayed:
    """What a replay made.

    Attributes:
        weights: the weights.
        round: the round they are of.
        digest: theirs.
        checked: whether the journal has that round's digest, which is then this one.
    """

    weights: Weights
    round: int
    digest: str
    checked: bool


def replay(
    base: str,
    journal: Path,
    *,
    round: int | None = None,
    on_round: Callable[[int], None] | None = None,
    terms: int = TERMS_A_PASS,
) -> Replayed:
    """The weights after `round` rounds of a journal, to the bit.

    They are the same on every backend, with any number of threads, however the weights are
    sharded: the digest is compared with the one the journal has of that round.

    Args:
        base: the model the journal starts from: a folder, a hub id, "demo", or a safetensors file.
        journal: the file; it is not changed.
        round: how many rounds; None: all.
        on_round: called with the number of rounds done, after each pass over the weights.
        terms: of a block, at which a pass is full (`journal.merged`).

    Raises:
        InputError: journal or base cannot be read, do not belong together, or have no such round.
    """
    log = DecodedJournal(journal)
    last = rounds(log)
    round = last if round is None else round
    log.check_round("round", round, last)
    found = weights.load(base, log.header)
    now = digest(found.named.items())
    if now != log.header.base:
        after = f", after {log.first} rounds" if log.first else ""
        raise InputError(
            f"'{base}': has weights with digest {now}, the journal starts from {log.header.base}"
            f" (source: {log.header.source!r}{after}); give the base model of '{journal}'"
        )
    groups = log.header.groups(found.named)
    expected: str | None = now

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
    now = digest(found.named.items())
    if expected not in (None, now):
        raise InputError(
            f"{journal}: round {round} replays to weights with digest {now}, not {expected} as it"
            " says; use the release that wrote it"
        )
    return Replayed(found, round, now, checked=expected is not None)


def save(replayed: Replayed, output: Path) -> None:
    """Write the weights, with config and tokenizer if the base has them, as a new folder.

    Raises:
        InputError: the folder is there already and not empty, or cannot be written.
    """
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with folder_atomic(output) as temporary:
            replayed.weights.save(temporary)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"output '{output}' cannot be written ({getattr(error, 'strerror', None) or error});"
            " name another folder after -o"
        ) from None


def check_output(output: Path) -> None:
    """Raise InputError unless `output` is not there yet, or an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output '{output}' is there already; name a new folder after -o")


def rounds(log: DecodedJournal) -> int:
    """How many rounds a journal's run has. Every record is checked on the way."""
    return log.first + sum(1 for _ in log.digests()) - 1


@dataclass(frozen=True)
class Verdict:
    """Whether weights are those of a journal's round.

    Attributes:
        matches: whether they are those of the round asked for.
        digest: theirs.
        expected: the journal's of that round; None: it has none.
        round: the round asked for.
        found: the latest round whose weights they are, or None.
    """

    matches: bool
    digest: str
    expected: str | None
    round: int
    found: int | None


def verify(folder: str, journal: Path, *, round: int | None = None) -> Verdict:
    """Compare a model's weights with a journal's digests; nothing is replayed.

    Args:
        folder: the model, or a run's folder with `model` in it.
        journal: the file.
        round: whose weights they should be; None: the last one's.

    Raises:
        InputError: model or journal cannot be read, or there is no such round.
    """
    log = DecodedJournal(journal)
    digests = log.known()
    last = max(digests)
    round = last if round is None else round
    log.check_round("round", round, last)
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

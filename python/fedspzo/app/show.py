"""The command `fedspzo journal show`: it prints a journal's header, rounds and sizes as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedspzo.errors import InputError
from fedspzo.federated.journal.merged_rounds import MergedRounds, update_bytes
from fedspzo.federated.journal.reader import Content, DecodedJournal
from fedspzo.federated.journal.rounds import EvaluationResult, Round
from fedspzo.federated.protocol.updates import EVERYBODY, Update
from fedspzo.journal.reader import Entry
from fedspzo.journal.records import Record
from fedspzo.privacy import Mechanism

from .human_bytes import human_bytes

_ROW = "{:>6} {:>8} {:>7} {:>7}  {:>9} {:>9} {:>9}  {}"


def lines(path: Path, round: int | None = None) -> Iterator[str]:
    """Yield the lines that `fedspzo journal show` prints.

    Args:
        path: the journal.
        round: the round to print in full. Default None: the header, and one line for each round.

    Raises:
        InputError: the journal cannot be read, is damaged, or has no such round.
    """
    log = DecodedJournal(path)
    if round is not None:
        yield from _one(log, path, round)
        return
    yield from _header(log, path)
    yield ""
    yield _ROW.format("round", "clients", "terms", "bytes", "train", "loss", "accuracy", "digest")
    rounds = terms = size = 0
    examples: dict[int, int] = {}  # number of examples of each client that reported
    asked: Counter[int] = Counter()  # number of rounds in which each client was asked
    waiting: list[str | int] = [log.first, "", "", "", "", "", "", log.header.base]
    for entry, content in log.entries():
        size += entry.size
        if isinstance(content, EvaluationResult):
            waiting[5:7] = _measured(content)
            continue
        if isinstance(content, Round):
            if content.evaluation is not None:
                waiting[5:7] = _measured(content.evaluation)
            asked.update(content.clients)
            examples |= {report.client: report.examples for report in content.reports}
        for row in _rows(entry, content):
            yield _ROW.format(*waiting)
            rounds, terms, waiting = rounds + 1, terms + int(row[2]), row
    yield _ROW.format(*waiting)
    yield ""
    total = f"{rounds} rounds, {terms} terms, {path.stat().st_size} bytes"
    yield f"{total}; without the header {size / terms:.1f} a term" if terms else total
    yield from _spent(log, examples, asked)
    if log.reader.torn:
        yield f"A torn record of {log.reader.torn} bytes follows; the next resume cuts it off."


def _header(log: DecodedJournal, path: Path) -> Iterator[str]:
    header = log.header
    trained = [p for p in header.parameters if p.block]
    kinds = Counter(p.dtype for p in header.parameters)
    yield f"{path}, by {header.program}"
    after = f" after {log.first} rounds" if log.first else ""
    yield f"base     {header.source}{after}, digest {header.base}"
    yield f"noise    {header.stream}"
    elements = sum(math.prod(p.shape) for p in trained)
    parts = " + ".join(str(len(names)) for names in header.names)
    yield (
        f"weights  {len(header.parameters)} parameters"
        f" ({', '.join(f'{n} {dtype}' for dtype, n in kinds.items())});"
        f" {parts} in blocks, {elements} elements"
    )
    if log.settings is not None:
        federation, optimizer = log.settings
        yield (
            f"run      seed {federation.seed}, {federation.clients} clients,"
            f" {federation.rounds} rounds of {federation.local_steps} steps, {federation.seeds}"
            f" seeds, {optimizer.estimator}, perturbations {optimizer.perturbations},"
            f" lr {' '.join(f'{rate:g}' for rate in optimizer.learning_rates)}"
        )
    if log.privacy is not None:
        yield (
            f"privacy  clip {log.privacy.clip:g}, noise multiplier"
            f" {log.privacy.noise_multiplier:g}, delta {log.privacy.delta:g}"
        )


def _spent(log: DecodedJournal, examples: dict[int, int], asked: Counter[int]) -> Iterator[str]:
    """Yield a line with each client's epsilon. A round whose report was lost counts too."""
    if log.privacy is None or log.settings is None:
        return
    federation, _ = log.settings
    if not examples:
        yield "epsilon is not computed: there is no report to tell how many examples clients have"
    for client in sorted(examples):
        try:
            account = Mechanism(log.privacy, examples[client])
        except ValueError as error:
            yield f"client {client}: epsilon is not computed: {error}"
            continue
        account.count(federation.batch_size, asked[client] * federation.local_steps)
        yield f"client {client} has spent epsilon {account.epsilon():.4g}"


def _rows(
    entry: Entry, content: Round | MergedRounds | tuple[Record, str | None]
) -> Iterator[list[str | int]]:
    if not isinstance(content, MergedRounds):
        yield _row(entry, content)
        return
    for update, known in content.changes():
        shared = any(client == EVERYBODY for client, _ in update.entries)
        clients = "" if shared else len(update.entries)
        size, digest = update_bytes(update), known or "not kept"
        yield [update.round + 1, clients, update.terms, size, "", "", "", digest]


def _row(entry: Entry, content: Round | tuple[Record, str | None]) -> list[str | int]:
    if isinstance(content, Round):
        clients = f"{len(content.reports)}/{len(content.clients)}"
        losses = [report.loss for report in content.reports if report.loss is not None]
        loss = sum(losses) / len(losses) if losses else None
        number, terms, digest = content.round, content.terms, content.digest
        return [number + 1, clients, terms, entry.size, _number(loss), "", "", digest]
    record, known = content
    terms = sum(len(block.seeds) for block in record.terms)
    return [record.round + 1, "", terms, entry.size, "", "", "", known or "not computed"]


def _one(log: DecodedJournal, path: Path, round: int) -> Iterator[str]:
    for entry, content in log.entries():
        found = list(_one_of(content, round - 1))
        if found:
            yield f"round {round}: record {entry.number} at byte {entry.offset}, {entry.size} bytes"
            yield from found
            return
    raise InputError(f"{path}: has no round {round}; 'fedspzo journal show {path}' lists them")


def _one_of(content: Content, number: int) -> Iterator[str]:
    """Yield the lines of a round, if the record holds it."""
    if isinstance(content, Round) and content.round == number:
        yield from _reports(content)
    elif isinstance(content, tuple) and content[0].round == number:
        yield from _terms(*content)
    elif isinstance(content, MergedRounds):
        first, last = (content.updates[place].round + 1 for place in (0, -1))
        for update, known in content.changes():
            if update.round == number:
                yield f"compacted: the record holds rounds {first} to {last}, without reports"
                yield f"digest afterwards {known or 'not kept'}"
                yield from _added(update)


def _reports(done: Round) -> Iterator[str]:
    yield f"digest afterwards {done.digest}, after {done.seconds:.2f} s"
    yield f"down {human_bytes(done.bytes_down)}, up {human_bytes(done.bytes_up)}"
    yield f"learning rates {' '.join(f'{rate:.4g}' for rate in done.lr)}"
    for report in done.reports:
        yield (
            f"client {report.client}: {report.examples} examples, loss {_number(report.loss)},"
            f" {report.forwards:.4g} forwards"
        )
        for step, row in zip(report.gradients.steps, report.gradients.values, strict=True):
            yield f"  step {step}, gradients {' '.join(f'{g:.4g}' for g in row)}"
    for rejection in done.rejected:
        yield f"rejected, {rejection}"
    for client in done.downloads:
        yield f"client {client} was sent the weights"
    yield from _added(done.update)


def _added(update: Update) -> Iterator[str]:
    for client, scalars in update.entries:
        who = "all clients" if client == EVERYBODY else f"client {client}"
        for step, row in zip(scalars.steps, scalars.values, strict=True):
            yield f"added, {who}, step {step}: {' '.join(f'{c:.4g}' for c in row)}"


def _terms(record: Record, digest: str | None) -> Iterator[str]:
    yield f"digest afterwards {digest or 'not computed'}"
    for number, block in enumerate(record.terms, 1):
        for seed, coefficient in zip(block.seeds, block.coeffs, strict=True):
            yield f"block {number}: {coefficient:.6g} along seed {seed}"


def _measured(evaluation: EvaluationResult) -> list[str | int]:
    return [_number(evaluation.loss), _percent(evaluation.accuracy)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"

"""Reads a run's folder: as much as is there, with a line about all that is missing or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedspzo.errors import InputError

from ..run_folder import CONFIG, JOURNAL, METRICS, MEZO_METRICS
from . import journal_facts
from .journal_facts import JournalFacts, sections

Row = Mapping[str, Any]

_NUMBERS = ("forwards", "bytes_up", "bytes_down", "fedavg_bytes", "skipped", "seconds")
_MAYBE = ("loss", "accuracy", "train_loss")


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run, as its folder tells it.

    Attributes:
        name: its name on the page.
        path: its folder.
        rows: FedSPZO's lines of metrics.jsonl, one a round from round 0 on.
        mezo: MeZO's lines; empty without [mezo].
        summary: the last line of a finished run's metrics. None: the run is not finished.
        settings: the config's sections.
        journal: the journal. None: there is none that can be read.
        notes: a line about each thing that is missing or damaged.
    """

    name: str
    path: Path
    rows: Sequence[Row]
    mezo: Sequence[Row]
    summary: Row | None
    settings: Mapping[str, Mapping[str, Any]]
    journal: JournalFacts | None
    notes: tuple[str, ...]

    @property
    def task(self) -> str:
        """The type of its task."""
        return str(self.settings.get("task", {}).get("type", "unknown"))

    @property
    def last(self) -> Row:
        """The last round's row."""
        return self.rows[-1]

    @property
    def planned(self) -> int | None:
        """The number of rounds that the config asks for. None: not known."""
        rounds = self.settings.get("federation", {}).get("rounds")
        return rounds if isinstance(rounds, int) else None

    @property
    def measured_on(self) -> tuple[str, ...]:
        """What the accuracy and loss are of, to tell which runs compare: the task and the examples.

        The examples are those of a file, or a share of the training file, which is drawn by the
        seed. A share for validation is drawn from what `test_share` leaves.
        """
        data = self.settings.get("data", {})
        known = {} if self.journal is None else self.journal.data
        judge = "validation" if "validation" in data else "test"
        if judge in known or isinstance(data.get(judge), str):
            return self.task, known.get(judge) or str(data[judge])
        train = known.get("train") or str(data.get("train"))
        shares = (str(data.get(key)) for key in ("test_share", "validation"))
        return self.task, train, *shares, str(self.settings.get("federation", {}).get("seed", 0))


def read_all(folders: Sequence[Path]) -> list[RecordedRun]:
    """Read runs' folders, each once, and give the runs names that differ.

    Raises:
        InputError: a folder holds no run.
    """
    different = list({folder.resolve(): folder for folder in folders}.values())
    runs = [read(folder) for folder in different]
    names = [run.name for run in runs]
    for number, run in enumerate(runs):
        if names.count(run.name) > 1:
            runs[number] = replace(run, name=str(run.path))
    return runs


def read(folder: Path) -> RecordedRun:
    """Read a run's folder.

    Raises:
        InputError: it holds no run, or no round was finished.
    """
    notes: list[str] = []
    if not (folder / METRICS).is_file():
        remedy = "name a run's folder"
        if (folder / JOURNAL).is_file():
            remedy = f"'fedspzo run --resume {folder}' writes it again from the journal"
        raise InputError(f"'{folder}' holds no {METRICS}; {remedy}")
    rows, summary = _metrics(folder / METRICS, notes)
    mezo: list[Row] = []
    if (folder / MEZO_METRICS).is_file():
        mezo, _ = _metrics(folder / MEZO_METRICS, notes)
    if not rows:
        why = notes[0] if notes else "no round is finished yet"
        raise InputError(f"'{folder}' has nothing to show: {why}; run it first")
    journal = None
    try:
        journal = journal_facts.read(folder / JOURNAL)
        if journal.note is not None:
            notes.append(journal.note)
    except InputError as error:
        notes.append(str(error))
    try:
        settings: Mapping[str, Mapping[str, Any]] = sections(
            (folder / CONFIG).read_text(encoding="utf-8")
        )
    except (OSError, UnicodeDecodeError):
        settings = {}
    if not settings:
        settings = journal.config if journal is not None else {}
        where = "the settings are those in the journal" if settings else "there are no settings"
        notes.append(f"{folder / CONFIG} is missing or no TOML, so {where}")
    return RecordedRun(
        name=folder.resolve().name,
        path=folder,
        rows=rows,
        mezo=mezo,
        summary=summary,
        settings=settings,
        journal=journal,
        notes=tuple(notes),
    )


def _metrics(path: Path, notes: list[str]) -> tuple[list[Row], Row | None]:
    """Read a metrics file up to its first damaged line. Return its rows, and the summary."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); restore it") from None
    lines.pop()  # empty, or a line that is just being written
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line, parse_constant=lambda _: None)
            if isinstance(row, dict) and row.get("summary") is True:
                return rows, row
            _check(row, len(rows))
        except (ValueError, RecursionError) as error:
            reason = "it is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            notes.append(
                f"{path}, line {number} is damaged ({reason}); the {len(rows)} lines before it are"
                " shown"
            )
            break
        rows.append(row)
    return rows, None


def _check(row: object, expected: int) -> None:
    """Raise ValueError unless a line of metrics is a row of round `expected`."""
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    if row.get("round") != expected:
        raise ValueError(f"it is of round {row.get('round')}, not {expected}")
    for key in _NUMBERS:
        if not _is_number(row.get(key)):
            raise ValueError(f"{key} is {row.get(key)!r}")
    for key in _MAYBE:
        if row.get(key) is not None and not _is_number(row[key]):
            raise ValueError(f"{key} is {row[key]!r}")
    if not all(isinstance(row.get(key), list) for key in ("clients", "rejected", "downloads")):
        raise ValueError("clients, rejected and downloads are no lists")
    if not all(isinstance(one, dict) and "client" in one for one in row["rejected"]):
        raise ValueError("an entry of rejected names no client")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

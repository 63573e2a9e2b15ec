"""Makes the page's tables: the runs side by side, settings and where they differ, environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..human_bytes import human_bytes
from .clients import ClientTotals
from .figures import Line, thinned
from .journal_facts import block_sizes
from .recorded import RecordedRun
from .words import duration, percent, short, state, worth

MOST_ROWS = 200
"""Number of rows of a table of figures, for each curve. A longer one is thinned."""

_NOT_A_SETTING = {("output", "dir")}
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        headings: its columns.
        rows: its rows, a text for each column. The first is the row's heading.
        numbers: True if the columns after the first are numbers. Default False.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = False


def of_curves(
    caption: str, value: str, lines: Sequence[Line], form: Callable[[float], str]
) -> Table:
    """Return the table with the points of a figure's curves.

    Args:
        caption: what it shows.
        value: heading of the values.
        lines: the curves.
        form: formats a value.
    """
    rows = [
        [
            line.name,
            f"{one['round']}",
            f"{one['forwards']:,.0f}",
            f"{one['seconds']:,.1f}",
            human_bytes(one["bytes"]),
            form(one["value"]),
        ]
        for line in lines
        for one in thinned(line.points, MOST_ROWS)
    ]
    headings = ["", "Round", "Passes", "Seconds", "Bytes", value]
    return Table(caption=caption, headings=headings, rows=rows, numbers=True)


def of_clients(caption: str, found: Sequence[ClientTotals]) -> Table:
    """Return the table of clients' totals."""
    rows = [
        [
            f"{one.client}",
            ABSENT if one.examples is None else f"{one.examples:,}",
            f"{one.asked:,}",
            f"{one.rejected:,}",
            f"{one.downloads:,}",
            ABSENT if one.share is None else percent(one.share),
            short(one.loss) or ABSENT,
            one.reason or "",
        ]
        for one in found
    ]
    headings = ["Client", "Examples", "Rounds asked", "Rejected", "Downloads", "Mean share"]
    headings += ["Last training loss", "Commonest reason"]
    return Table(caption=caption, headings=headings, rows=rows, numbers=True)


def settings(runs: Sequence[RecordedRun]) -> tuple[Table, Table]:
    """Return the settings that differ between runs, and all settings."""
    columns = [dict(_flat(run.settings)) for run in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    order = {name: place for place, name in enumerate(dict.fromkeys(key[0] for key in keys))}
    keys.sort(key=lambda key: order[key[0]])  # a section stays together
    rows = [
        [f"[{section}] {key}", *(column.get((section, key), ABSENT) for column in columns)]
        for section, key in keys
    ]
    names = ["Setting", *(run.name for run in runs)]
    differing = [
        [row[0], *(_end(text) for text in row[1:])]
        for row, key in zip(rows, keys, strict=True)
        if len(set(row[1:])) > 1 and key not in _NOT_A_SETTING
    ]
    return (
        Table(caption="What differs in the settings", headings=names, rows=differing),
        Table(caption="All settings, with every default", headings=names, rows=rows),
    )


def outcomes(runs: Sequence[RecordedRun]) -> Table:
    """Return the table of the runs' outcomes, side by side."""
    rows = []
    for run in runs:
        value, last = worth(run), run.last
        rows.append(
            [
                run.name,
                _change(value.before, value.after, percent),
                _change(value.loss_before, value.loss_after, "{:.3f}".format),
                human_bytes(last["bytes_up"]),
                human_bytes(last["bytes_down"]),
                f"{last['forwards']:,.0f}",
                duration(last["seconds"]),
                f"{sum(len(row['rejected']) for row in run.rows):,}",
                f"{last['skipped']:,}",
                state(run)[1],
            ]
        )
    headings = ["Run", "Accuracy", "Loss", "Sent up", "Sent down", "Passes", "Time", "Rejected"]
    headings += ["Skipped steps", "State"]
    return Table(caption="The runs, side by side", headings=headings, rows=rows, numbers=True)


def environment(runs: Sequence[RecordedRun]) -> Table:
    """Return the table of what the runs ran on."""
    columns = [dict(_environment(run)) for run in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [[key, *(column.get(key, ABSENT) for column in columns)] for key in keys]
    headings = ["", *(run.name for run in runs)]
    return Table(caption="Environment", headings=headings, rows=rows)


def digests(run: RecordedRun) -> Table:
    """Return the table of the digests after the rounds that were evaluated."""
    kept = (run.summary or {}).get("kept_round")
    last = run.last["round"]
    rows = []
    for row in run.rows:
        number = row["round"]
        notes = [
            text
            for text, true in (
                ("before training", number == 0),
                ("the last round", number == last),
                ("saved as the model", number == kept),
            )
            if true
        ]
        if notes or row.get("accuracy") is not None:
            rows.append([f"{number}", str(row.get("digest", ABSENT)), ", ".join(notes)])
    rows = thinned(rows, MOST_ROWS)
    caption = f"Digests of the weights of {run.name}"
    return Table(caption=caption, headings=["Round", "Digest", ""], rows=rows)


def confusion(run: RecordedRun) -> Table | None:
    """Return the table of classes of a finished run, or None if it has none."""
    summary = run.summary or {}
    found, classes = summary.get("confusion"), summary.get("classes", {})
    if not isinstance(found, dict) or not isinstance(classes, dict):
        return None
    headings = ["Class", "Precision", "Recall", "F1", *(f"as {name}" for name in found["labels"])]
    rows = []
    for label, counts in zip(found["labels"], found["rows"], strict=False):
        one = classes.get(label)
        shares = [ABSENT] * 3
        if one is not None:
            shares = [percent(one[key]) for key in ("precision", "recall", "f1")]
        rows.append([label, *shares, *(f"{count:,}" for count in counts)])
    caption = f"Classes on the test examples: {run.name}"
    if "macro_f1" in summary:
        caption += f", macro F1 {percent(summary['macro_f1'])}"
    return Table(caption=caption, headings=headings, rows=rows, numbers=True)


def _flat(
    document: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the keys of a config with their values as TOML would have them."""
    for section, table in document.items():
        for key, value in table.items():
            if isinstance(value, dict):
                yield (section, key), ", ".join(f"{k} = {v}" for k, v in value.items())
            else:
                yield (section, key), str(value).lower() if value in (True, False) else str(value)


def _change(before: float | None, after: float | None, form: Callable[[float], str]) -> str:
    known = [form(value) for value in (before, after) if value is not None]
    return " \N{RIGHTWARDS ARROW} ".join(known) or ABSENT


def _end(text: str) -> str:
    """Return the last two parts of an absolute path. Other texts stay as they are."""
    parts = text.split("/")
    return (
        "\N{HORIZONTAL ELLIPSIS}/" + "/".join(parts[-2:])
        if len(parts) > 3 and not parts[0]
        else text
    )


def _environment(run: RecordedRun) -> Iterator[tuple[str, str]]:
    summary = run.summary or {}
    yield "Folder", str(run.path)
    if run.journal is not None:
        header = run.journal.header
        yield "Written by", header.program
        yield "Base model", header.source
        sizes = block_sizes(header)
        total = sum(math.prod(p.shape) for p in header.parameters if p.tied is None)
        yield "Weights", f"{total:,}"
        yield "Trained", " + ".join(f"{size:,.0f}" for size in sizes)
        yield "Noise", header.stream
    versions = summary.get("versions")
    if isinstance(versions, dict):
        for name, version in versions.items():
            yield str(name), str(version)
    machine = summary.get("machine")
    if isinstance(machine, dict):
        for name, value in machine.items():
            yield str(name).capitalize(), str(value)
    if "threads" in summary:
        yield "Threads", str(summary["threads"])
    seconds = summary.get("seconds", run.last["seconds"])
    yield "Time", duration(float(seconds))
    if run.journal is not None:
        yield "Digest before training", run.journal.header.base
    yield "Digest of the last round", str(run.last.get("digest", ABSENT))

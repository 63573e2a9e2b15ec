"""The report on a run of the suite, in Markdown, from its rows.

    python -m gpu.report OUT

writes OUT/gpu.md anew from OUT/rows.jsonl.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from . import rows
from .goals import GOALS
from .rows import STAMP, Row


def cell(value: Any) -> str:
    """A value as a table shows it: four digits of a fraction, the last line of a long text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    lines = str(value).strip().splitlines() or [""]
    return lines[-1][-160:].replace("|", "/")


def table(columns: list[str], lines: list[list[Any]]) -> str:
    """A Markdown table."""
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(map(cell, line)) + " |" for line in lines)])


def verdicts(found: list[Row]) -> str:
    """The table of goals: one line for each case, "not measured" where there is none."""
    lines: list[list[Any]] = []
    for goal in GOALS:
        bound = f"at least {goal.least:g}" if goal.least is not None else f"at most {goal.most:g}"
        values = goal.values(found)
        for case, value in values.items():
            lines.append([goal.what, case, bound, value, goal.verdict(value)])
        if not values:
            lines.append([goal.what, "", bound, "", "not measured"])
    return table(["goal", "case", "bound", "measured", "verdict"], lines)


def comparison(found: list[Row]) -> str:
    """The forms of the CUDA library side by side: what share of a copy's speed each has.

    A cell has the range over the turns: less than that is no difference between two forms.
    """
    shares: dict[str, dict[str, list[float]]] = {}
    for row in found:
        if row["part"] == "variants" and "share_of_copy" in row:
            cases = shares.setdefault(row["what"], {})
            cases.setdefault(row["variant"], []).append(row["share_of_copy"])
    names = list(dict.fromkeys(name for cases in shares.values() for name in cases))
    lines = [
        [what, *(" to ".join(f"{s:.3f}" for s in sorted(cases.get(name, []))) for name in names)]
        for what, cases in shares.items()
    ]
    return table(["share of a copy", *names], lines)


def section(name: str, found: list[Row]) -> str:
    """A part's rows: one table for all rows that have the same fields."""
    tables: dict[tuple[str, ...], list[list[Any]]] = {}
    for row in found:
        fields = ("variant", *(field for field in row if field not in STAMP))
        tables.setdefault(fields, []).append([row.get(field) for field in fields])
    return "\n\n".join([f"## {name}", *(table(list(f), lines) for f, lines in tables.items())])


def _named(found: list[Row], field: str) -> str:
    """The values of a field, each once, without those of parts that left no row."""
    values = dict.fromkeys(row[field] for row in found if row[field] != "unknown")
    return ", ".join(values) or "unknown"


def text(found: list[Row]) -> str:
    """The whole report."""
    cards, torch, backends = (_named(found, field) for field in ("card", "torch", "backend"))
    lines = [f"{cards}; torch {torch}; backends {backends}"]
    if found:
        lines[0] += f"; {found[0]['date']} to {found[-1]['date']}"
    if any(row["dry"] for row in found):
        lines.append("**A dry run, without a GPU: none of these numbers means anything.**")
    failed = [row for row in found if "failed" in row]
    parts: dict[str, list[Row]] = {}
    for row in found:
        parts.setdefault(row["part"], []).append(row)
    sections = [section(name, mine) for name, mine in parts.items()]
    problems = table(
        ["part", "variant", "line", "what happened"],
        [[row["part"], row["variant"], row["what"], row["failed"]] for row in failed],
    )
    return "\n\n".join(
        [
            "# A run of the GPU suite",
            *lines,
            "## Goals",
            verdicts(found),
            *(("## What failed", problems) if failed else ()),
            "## Forms of the CUDA library",
            comparison(found),
            *sections,
            "",
        ]
    )


def write(source: Path, target: Path) -> None:
    """Write the report on a file of rows, in one move."""
    new = target.with_suffix(".new")
    new.write_text(text(rows.read(source)))
    new.replace(target)


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "rows.jsonl", Path(sys.argv[1]) / "gpu.md")

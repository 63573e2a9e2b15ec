"""Makes the page's panels: each has a figure, its heading and caption, and the table below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import clients, figures, heatmap, tables, words
from .figures import Line, point
from .recorded import RecordedRun, Row
from .tables import Table


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the page with what stands around it.

    Attributes:
        id: its id in the page.
        title: its heading.
        caption: a sentence about what it shows.
        specification: the figure, in Vega-Lite.
        table: the same figures as a table.
    """

    id: str
    title: str
    caption: str
    specification: dict[str, Any]
    table: Table


def outcomes(runs: Sequence[RecordedRun]) -> list[Panel]:
    """Return the curves of accuracy and loss, apart for runs that do not compare."""
    groups: dict[tuple[str, ...], list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(run.measured_on, []).append(run)
    found = []
    for number, (key, group) in enumerate(groups.items()):
        what = f", {', '.join(run.name for run in group)}" if len(groups) > 1 else ""
        judge = "validation" if "validation" in group[0].settings.get("data", {}) else "test"
        lines = _held_out(group, runs, "accuracy")
        majority = words.number((group[0].summary or {}).get("majority_accuracy"))
        caption = f"On the {judge} examples, which are never trained on."
        if majority is not None:
            caption += " The dotted line is the share of the commonest label."
        if any(line.rings for line in lines):
            caption += " A ring marks the round that was saved."
        found.append(
            Panel(
                id=f"accuracy-{number}",
                title=f"Accuracy{what}",
                caption=caption,
                specification=figures.curves(
                    lines, title="accuracy", format=".1%", ticks=".0%", rule=majority
                ),
                table=tables.of_curves(f"Accuracy{what}", "Accuracy", lines, words.percent),
            )
        )
        lines = _held_out(group, runs, "loss")
        found.append(
            Panel(
                id=f"loss-{number}",
                title=f"Loss{what}",
                caption=f"In nats. Thick: on the {judge} examples. Thin: on the clients' batches.",
                specification=figures.curves(
                    lines, title="loss", format=".3~f", highest=_highest(lines)
                ),
                table=tables.of_curves(f"Loss{what}", "Loss", lines, words.short),
            )
        )
        if key[0] in words.BY_LOSS:
            found[-2:] = found[:-3:-1]
    return found


def _held_out(group: Sequence[RecordedRun], runs: Sequence[RecordedRun], key: str) -> list[Line]:
    """Return the curves of what was measured, FedSPZO's and MeZO's."""
    lines = []
    for run in group:
        color, several = list(runs).index(run), len(runs) > 1
        for rows, method in ((run.rows, "FedSPZO"), (run.mezo, "MeZO")):
            ours = method == "FedSPZO"
            points = [point(row, row[key]) for row in rows if row.get(key) is not None]
            faint = [
                point(row, row["train_loss"])
                for row in rows
                if key == "loss" and row.get("train_loss") is not None
            ]
            kept = (run.summary or {}).get("kept_round")
            early = ours and kept is not None and kept < run.last["round"]
            if points:
                name = run.name if ours else f"{run.name}, MeZO"
                lines.append(
                    Line(
                        name=name if several else method,
                        color=color if several or ours else 1,
                        dash=0 if ours else 1,
                        points=points,
                        faint=faint,
                        rings=[one for one in points if early and one["round"] == kept],
                    )
                )
    return lines


def _highest(lines: Sequence[Line]) -> float | None:
    """Return the end of the loss's axis, so that a curve that diverges does not flatten the others.

    The axis goes to 1.3 times the largest loss with which a curve begins, unless all stay below.
    """
    starts = [line.points[0]["value"] for line in lines]
    largest = max((one["value"] for line in lines for one in line.points), default=0.0)
    limit = 1.3 * max(starts, default=0.0)
    trained = max((one["value"] for line in lines for one in line.faint), default=0.0)
    return limit if starts and limit > 0 and max(largest, trained) > limit else None


def steps(runs: Sequence[RecordedRun]) -> list[Panel]:
    """Return the curves of projected gradients and learning rates, of each block."""
    gradients = _by_block(runs, lambda run, row: _fact(run, row, "gradients"))
    rates = _by_block(runs, lambda run, row: _fact(run, row, "rates") or row.get("lr") or ())
    found = []
    if gradients:
        found.append(
            Panel(
                id="gradients",
                title="Projected gradients",
                caption="Root mean square over clients, steps and directions, by block.",
                specification=figures.curves(
                    gradients, title="projected gradient", format=".3~g", logarithmic=True
                ),
                table=tables.of_curves(
                    "Projected gradients", "Root mean square", gradients, words.short
                ),
            )
        )
    if rates:
        found.append(
            Panel(
                id="rates",
                title="Learning rates",
                caption="Of each round's steps, by block.",
                specification=figures.curves(
                    rates, title="learning rate", format=".3~g", logarithmic=True
                ),
                table=tables.of_curves("Learning rates", "Rate", rates, words.short),
            )
        )
    return found


def _fact(run: RecordedRun, row: Row, name: str) -> Sequence[float | None]:
    done = None if run.journal is None else run.journal.rounds.get(row["round"])
    return () if done is None else getattr(done, name)


def _by_block(
    runs: Sequence[RecordedRun], values: Callable[[RecordedRun, Row], Sequence[float | None]]
) -> list[Line]:
    lines = []
    for number, run in enumerate(runs):
        points: dict[int, list[dict[str, float]]] = {}
        for row in run.rows:
            for block, value in enumerate(values(run, row)):
                if value is not None:
                    points.setdefault(block, []).append(point(row, value))
        several = len(runs) > 1
        for block, mine in sorted(points.items()):
            name = f"block {block + 1}"
            lines.append(
                Line(
                    name=f"{run.name}, {name}" if several else name,
                    color=number if several else block,
                    dash=block if several else 0,
                    points=mine,
                )
            )
    return lines


def privacy(runs: Sequence[RecordedRun]) -> list[Panel]:
    """Return the curve of what private clients have spent."""
    lines = [
        Line(name=run.name, color=number, dash=0, points=points)
        for number, run in enumerate(runs)
        if (
            points := [
                point(row, max(spent))
                for row in run.rows
                if (spent := [e for e in row.get("epsilons") or () if e is not None])
            ]
        )
    ]
    if not lines:
        return []
    return [
        Panel(
            id="epsilon",
            title="Privacy spent",
            caption="The largest finite epsilon of any client.",
            specification=figures.curves(lines, title="epsilon", format=".3~g"),
            table=tables.of_curves("Privacy spent", "Epsilon", lines, words.short),
        )
    ]


def of_clients(run: RecordedRun, runs: Sequence[RecordedRun]) -> Panel | None:
    """Return the figure of what each client did."""
    found = clients.totals(run)
    if not found:
        return None
    chosen = clients.shown(found)
    shared = run.journal is not None and run.journal.shared
    colour = "weight in the update" if shared else "share of the update"
    cells = clients.cells(run, chosen)
    caption = "Red: the report was rejected, or did not come. Triangle: the weights were sent."
    if any(cell.share is None and not cell.rejected for cell in cells):
        caption += " Grey: not known."
    if not shared:
        caption = f"A share is of the update's squared length. {caption}"
    if len(chosen) < len(found):
        caption = (
            f"{len(chosen)} of {len(found)} clients, those with the most rejections. {caption}"
        )
    title = run.name if len(runs) > 1 else "What each client did"
    return Panel(
        id=f"clients-{list(runs).index(run)}",
        title=title,
        caption=caption,
        specification=heatmap.heatmap(cells, chosen, colour),
        table=tables.of_clients(f"Clients: {title}", found),
    )

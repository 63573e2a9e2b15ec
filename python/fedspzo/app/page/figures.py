"""Draws the figures as Vega-Lite specifications, by Altair. The browser makes pictures of them.

A colour is written as a variable of the style sheet, `var(--series-0)`, so that it fits a light and
a dark page; page.js puts its value in. The x axis of a curve is one of `AXES`, and the reader
chooses which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from .recorded import Row

COLORS = 8
"""Number of colours in page.css. More lines than that begin with the first one again."""
DASHES = ([1, 0], [6, 4], [2, 3], [9, 3, 2, 3])
MOST = 400
"""Number of points of a curve. A longer one is thinned."""

_BYTES = (
    "datum.value >= 1e9 ? format(datum.value / 1e9, '.3~g') + ' GB'"
    " : datum.value >= 1e6 ? format(datum.value / 1e6, '.3~g') + ' MB'"
    " : datum.value >= 1e3 ? format(datum.value / 1e3, '.3~g') + ' kB' : datum.value + ' B'"
)
AXES: dict[str, dict[str, str]] = {
    "forwards": {
        "label": "Passes",
        "title": "forward passes, all clients",
        "labels": "format(datum.value, ',')",
    },
    "seconds": {
        "label": "Seconds",
        "title": "seconds since the start",
        "labels": "format(datum.value, ',')",
    },
    "bytes": {"label": "Bytes", "title": "bytes sent, up and down, all clients", "labels": _BYTES},
    "round": {"label": "Rounds", "title": "rounds", "labels": "format(datum.value, ',')"},
}
"""What a curve can be drawn against: the field of its points, and how the axis is written."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a figure.

    Attributes:
        name: its name in the legend. Lines of one figure have different names.
        color: number of its colour.
        dash: number of its pattern in `DASHES`; 0 is solid.
        points: its points: a dict with the fields of `AXES` and "value".
        faint: further points that are drawn as a thin line behind it.
        rings: those of its points that are marked by a ring.
    """

    name: str
    color: int
    dash: int
    points: Sequence[dict[str, float]]
    faint: Sequence[dict[str, float]] = ()
    rings: Sequence[dict[str, float]] = ()


def point(row: Row, value: float) -> dict[str, float]:
    """Return the point of a round's row that has a value."""
    return {
        "round": row["round"],
        "forwards": row["forwards"],
        "seconds": row["seconds"],
        "bytes": row["bytes_up"] + row["bytes_down"],
        "value": value,
    }


def thinned(points: Sequence[Any], most: int = MOST) -> list[Any]:
    """Return at most about `most` of some points, evenly chosen, with the first and the last."""
    step = math.ceil(len(points) / most) or 1
    kept = list(points[::step])
    if points and kept[-1] is not points[-1]:
        kept.append(points[-1])
    return kept


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    format: str,
    ticks: str | None = None,
    logarithmic: bool = False,
    highest: float | None = None,
    rule: float | None = None,
) -> dict[str, Any]:
    """Draw a figure of curves.

    Args:
        lines: the curves.
        title: what "value" is.
        format: how a value is written, in d3's notation.
        ticks: how it is written at the axis. Default None: by `format`.
        logarithmic: the y axis is logarithmic. Points that are not positive are left out. Default
            False.
        highest: the end of the y axis, above which curves are cut off. Default None: the largest
            value.
        rule: a value at which a horizontal line is drawn. Default None: none.

    Returns:
        The specification in Vega-Lite.
    """
    scale: dict[str, Any] = {"type": "log"} if logarithmic else {"zero": False}
    if highest is not None:
        scale["domainMax"] = highest
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(**scale),
        axis=alt.Axis(title=None, **_marks(lines, ticks or format, logarithmic=logarithmic)),
    )
    x = alt.X(
        "forwards:Q",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(
            title=AXES["forwards"]["title"], labelExpr=AXES["forwards"]["labels"], tickCount=6
        ),
    )
    color, dash = _styles(lines)
    shown = _data([(line, line.points) for line in lines], logarithmic)
    base = alt.Chart(shown).encode(x=x, y=y, color=color)
    chosen = alt.selection_point(
        nearest=True, on="pointerover", clear="pointerout", empty=False, name="nearest"
    )
    few = max((len(line.points) for line in lines), default=0) <= 40
    layers = []
    if rule is not None:
        layers.append(
            alt.Chart(alt.InlineData(values=[{"value": rule}]))
            .mark_rule(color="var(--muted)", strokeDash=[2, 4])
            .encode(y=y)
        )
    if any(line.faint for line in lines):
        layers.append(
            alt.Chart(_data([(line, line.faint) for line in lines], logarithmic))
            .mark_line(strokeWidth=1, opacity=0.35, clip=True)
            .encode(x=x, y=y, color=color)
        )
    layers.append(base.mark_line(strokeWidth=2.5, clip=True).encode(strokeDash=dash))
    layers.append(
        base.mark_circle(clip=True)
        .encode(
            tooltip=_details(title, format),
            size=alt.condition(chosen, alt.value(110), alt.value(34 if few else 24)),
            opacity=alt.condition(chosen, alt.value(1), alt.value(1 if few else 0)),
        )
        .add_params(chosen)
    )
    if any(line.rings for line in lines):
        layers.append(
            alt.Chart(_data([(line, line.rings) for line in lines], logarithmic))
            .mark_point(size=190, strokeWidth=2.5, filled=False)
            .encode(x=x, y=y, color=color)
        )
    chart = alt.layer(*layers).properties(width="container", height=270)
    return specification(chart)


def _styles(lines: Sequence[Line]) -> tuple[alt.Color, alt.StrokeDash]:
    """Return the colours and patterns of lines, with their legend."""
    legend = None
    if len(lines) > 1:
        legend = alt.Legend(
            title=None,
            orient="top",
            columns=3,
            symbolType="stroke",
            symbolOpacity=1,
            symbolSize=300,
        )
    names = [line.name for line in lines]
    colors = [f"var(--series-{line.color % COLORS})" for line in lines]
    patterns = [DASHES[line.dash % len(DASHES)] for line in lines]
    return (
        alt.Color("line:N", scale=alt.Scale(domain=names, range=colors), legend=legend),
        alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=patterns), legend=legend),
    )


def _details(title: str, format: str) -> list[alt.Tooltip]:
    """Return what is shown of a point that the pointer is near to."""
    return [
        # "title" is a tooltip's heading; page.js has the format
        alt.Tooltip("line:N", title="title", format="", formatType="asText"),
        alt.Tooltip("value:Q", title=title, format=format),
        alt.Tooltip("round:Q", title="round", format=","),
        alt.Tooltip("forwards:Q", title="passes", format=",.0f"),
        alt.Tooltip("seconds:Q", title="seconds", format=",.1f"),
        alt.Tooltip("bytes:Q", title="bytes", format=",.0f"),
    ]


def _marks(lines: Sequence[Line], format: str, *, logarithmic: bool) -> dict[str, Any]:
    """Return how a y axis is marked: a logarithmic one at powers of ten, or at 1, 2 and 5."""
    values = [one["value"] for line in lines for one in line.points if one["value"] > 0]
    if not logarithmic or not values:
        return {"format": format, "tickCount": 5}
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    marks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {"format": format, "values": [float(f"{mark:.1g}") for mark in marks]}


def _data(
    lines: Iterable[tuple[Line, Sequence[dict[str, float]]]], logarithmic: bool
) -> alt.InlineData:
    return alt.InlineData(
        values=[
            {"line": line.name} | {key: _rounded(value) for key, value in one.items()}
            for line, points in lines
            for one in thinned(points)
            if not logarithmic or one["value"] > 0
        ]
    )


def _rounded(value: float) -> float:
    """Return a number with seven digits, which are more than a figure shows."""
    return value if isinstance(value, int) else float(f"{value:.7g}")


def specification(chart: alt.LayerChart | alt.FacetChart) -> dict[str, Any]:
    """Return a chart in Vega-Lite, without a style of its own."""
    made: dict[str, Any] = chart.to_dict()
    made.pop("config", None)  # page.js has the style
    made.pop("$schema", None)
    return made

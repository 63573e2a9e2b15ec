"""Draws the figure of the clients: what each of them did in each round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from .clients import Cell
from .figures import specification


def heatmap(cells: Sequence[Cell], clients: Sequence[int], title: str) -> dict[str, Any]:
    """Draw clients against rounds: shares of the update, rejections and downloads.

    Args:
        cells: what each client did in each round, or in some rounds together.
        clients: the ids, from top to bottom.
        title: what the colour stands for.

    Returns:
        The specification in Vega-Lite.
    """
    values: list[dict[str, Any]] = [
        {
            "client": cell.client,
            "from": cell.first - 0.5,
            "to": cell.last + 0.5,
            "rounds": f"{cell.first}" if cell.first == cell.last else f"{cell.first}-{cell.last}",
            "share": cell.share,
            "rejected": cell.rejected,
            "reason": cell.reason or "",
            "downloads": cell.downloads,
        }
        for cell in cells
    ]
    y = alt.Y(
        "client:O",
        sort=list(clients),
        axis=alt.Axis(title="client", domain=False, ticks=False, grid=False),
        scale=alt.Scale(paddingInner=0.12),
    )
    x = alt.X(
        "from:Q",
        axis=alt.Axis(title="round", grid=False, tickCount=8, format="d"),
        scale=alt.Scale(nice=False, zero=False),
    )
    details = [
        alt.Tooltip("client:O", title="client"),
        alt.Tooltip("rounds:N", title="round"),
        alt.Tooltip("share:Q", title=title, format=".1%"),
        alt.Tooltip("rejected:Q", title="rejected reports"),
        alt.Tooltip("reason:N", title="reason"),
        alt.Tooltip("downloads:Q", title="downloads of the weights"),
    ]
    highest = max((cell.share or 0.0 for cell in cells), default=0.0) or 1.0
    color = alt.Color(
        "share:Q",
        scale=alt.Scale(domain=[0, highest], range=["var(--heat-low)", "var(--heat-high)"]),
        legend=alt.Legend(
            title=title, orient="top", format=".0%", gradientLength=160, gradientThickness=10
        ),
    )

    def base(some: list[dict[str, Any]]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=some)).encode(x=x, y=y, tooltip=details)

    known = [value for value in values if value["share"] is not None]
    unknown = [v for v in values if v["share"] is None and not v["rejected"]]
    lost = [v for v in values if v["share"] is None and v["rejected"]]
    mended = [value for value in known if value["rejected"]]
    loaded = [v | {"from": (v["from"] + v["to"]) / 2} for v in values if v["downloads"]]
    rect: dict[str, Any] = {"x2": alt.X2("to:Q")}
    layers = [
        layer
        for some, layer in (
            (known, base(known).mark_rect().encode(color=color, **rect)),
            (unknown, base(unknown).mark_rect(color="var(--heat-none)").encode(**rect)),
            (lost, base(lost).mark_rect(color="var(--bad)").encode(**rect)),
            (
                mended,
                base(mended)
                .mark_rect(fillOpacity=0, stroke="var(--bad)", strokeWidth=2)
                .encode(**rect),
            ),
            (
                loaded,
                base(loaded).mark_point(
                    shape="triangle-down", filled=True, size=26, color="var(--ink)", opacity=1
                ),
            ),
        )
        if some
    ]
    height = max(90, min(24 * len(clients), 640))
    return specification(alt.layer(*layers).properties(width="container", height=height))

"""Draws a run's figure, results.png, from rows alone, as in metrics.jsonl."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from .human_bytes import human_bytes

Row = Mapping[str, Any]

OURS, MEZO, FEDAVG = "#1f5fa8", "#d1731c", "#8a8a8a"


def figure_png(rows: Sequence[Row], mezo: Sequence[Row], title: str) -> bytes:
    """Draw a run's figure: loss and accuracy over computation, and bytes over rounds.

    Args:
        rows: the run's rows.
        mezo: rows of the comparison run; empty without one.
        title: the figure's title.

    Returns:
        The bytes of a PNG file.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)
        losses, accuracies, traffic = figure.subplots(1, 3)
        for axes, key in ((losses, "loss"), (accuracies, "accuracy")):
            for name, series, color in (("MeZO", mezo, MEZO), ("FedSPZO", rows, OURS)):
                points = [(r["forwards"], r[key]) for r in series if r.get(key) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), color=color, label=name, linewidth=2)
            axes.set_xlabel("full-forward equivalents, all clients")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        # a baseline that diverges must not flatten our curve
        highest = max((row["loss"] for row in rows if row.get("loss") is not None), default=1.0)
        losses.set_ylim(top=min(losses.get_ylim()[1], 1.3 * highest))
        losses.set_title("held-out loss (nats)", loc="left")
        accuracies.set_title("held-out accuracy", loc="left")
        accuracies.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if mezo:
            losses.legend(frameon=False, loc="upper right", reverse=True)
        _plot_traffic(traffic, rows)
        return _painted(figure)


def _painted(figure: Any) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=144)
    return png.getvalue()


def _plot_traffic(axes: Any, rows: Sequence[Row]) -> None:
    rows = [row for row in rows if row["round"] > 0]
    rounds = [row["round"] for row in rows]
    lines = (
        ("FedAvg would send, each way", FEDAVG, "--", [row["fedavg_bytes"] for row in rows]),
        ("FedSPZO down", OURS, "-", [row["bytes_down"] for row in rows]),
        ("FedSPZO up", OURS, ":", [row["bytes_up"] for row in rows]),
    )
    for label, color, dash, values in lines:
        axes.plot(rounds, values, color=color, linestyle=dash, linewidth=2)
        below = label.endswith("up")  # this line is the lowest, close to the next one
        axes.annotate(
            label,
            (rounds[-1], values[-1]),
            xytext=(0, -6 if below else 6),
            textcoords="offset points",
            ha="right",
            va="top" if below else "bottom",
            color=color,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: human_bytes(value))
    axes.set_xlabel("round")
    axes.set_title("bytes sent so far, all clients", loc="left")
    axes.margins(y=0.12)

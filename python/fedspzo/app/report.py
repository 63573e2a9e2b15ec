"""The reports of a run: its progress, a table and a figure.

They are made from rows alone: one dict for each round, as in metrics.jsonl.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from .console import PlainConsole
from .waiting import Waiting

Row = Mapping[str, Any]

LINES = 10
BAR, WIDE = 24, 80
"""Width of a progress bar, and of the terminals that have one, in characters."""
MOST_CLASSES = 6
MOST_CLIENTS = 16
OURS, MEZO, FEDAVG = "#1f5fa8", "#d1731c", "#8a8a8a"


class ProgressReport:
    """Shows a run's progress on stderr: round, time left, loss, accuracy and bytes.

    It is a bar on a terminal. Elsewhere it is about `LINES` lines, and one more where a round is
    long (`Waiting`). A narrow terminal shows the round and the time left, and of the rest what
    fits. It is a context manager.

    Args:
        title: the first word of each line.
        rounds: number of rounds of the run.
        quiet: write nothing. Default False.
    """

    def __init__(self, title: str, rounds: int, *, quiet: bool = False) -> None:
        self.title = title
        self.rounds = rounds
        self.quiet = quiet
        self.started = time.monotonic()
        self.first: int | None = None
        self.done = 0
        self.lines = 0
        self.seen: dict[str, Any] = {}
        console = PlainConsole(stderr=True)
        # rich takes every dumb terminal to be 80 columns wide
        self.width = shutil.get_terminal_size().columns if console.is_terminal else None
        self.bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal and not quiet:
            wide = console.width >= WIDE
            columns = [
                SpinnerColumn("line", finished_text=" "),  # it turns in a long round too
                TextColumn("{task.description}"),
                *([BarColumn(bar_width=BAR)] if wide else []),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                TextColumn("left"),
                TextColumn("{task.fields[state]}"),
            ]
            fixed = f"| {title} {rounds}/{rounds} 0:00:00 left "
            self.room = console.width - len(fixed) - wide * (BAR + 1)
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task(title, total=rounds, state="")
        self.waiting = Waiting(self._long, quiet=quiet or self.bar is not None)

    def __enter__(self) -> ProgressReport:
        if self.bar is not None:
            self.bar.start()
        self.waiting.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.waiting.__exit__(kind, error, trace)
        if self.bar is not None:
            self.bar.stop()

    def update(self, row: Row) -> None:
        """Show a round's row.

        The accuracy stays as it was where a round was not evaluated. A training loss that a row has
        none of is not shown, as an old one would look like this round's.
        """
        if row.get("train_loss") is None:
            self.seen.pop("train_loss", None)
        self.seen = self.seen | {key: value for key, value in row.items() if value is not None}
        self.done = done = int(row["round"])
        if self.first is None:
            self.first = done  # a resumed run does not start at 0
        if self.bar is not None:
            self.bar.update(self.task, completed=done, state=self._state(self.room))
            return
        tenth, new = done * LINES // self.rounds, done - self.first
        if self.quiet or (new > 0 and tenth == self.lines):
            return
        self.lines = tenth
        print(self._line(), file=sys.stderr, flush=True)
        self.waiting.told()

    def _line(self) -> str:
        """Return a line with the last round, and the time left if a round was played."""
        new = self.done - (self.done if self.first is None else self.first)
        start = f"{self.title}  round {self.done}/{self.rounds}"
        left = (time.monotonic() - self.started) * (self.rounds - self.done) / max(new, 1)
        remaining = f"  {left:.0f} s left" if new > 0 else ""
        room = None if self.width is None else self.width - len(start + remaining) - 2
        state = self._state(room)
        return f"{start}{'  ' if state else ''}{state}{remaining}"

    def _long(self, seconds: float) -> str:
        """Return the line for a long round."""
        return f"{self._line()}  ({seconds:.0f} s so far)"

    def _state(self, room: int | None = None) -> str:
        """Return what is known of a round: of its parts as many as fit into `room` characters."""
        parts = []
        for key, form in (("train_loss", "loss {:.3f}"), ("accuracy", "accuracy {:.1%}")):
            if key in self.seen:
                parts.append(form.format(self.seen[key]))
        if self.seen.get("skipped"):
            parts.append(f"{self.seen['skipped']} steps skipped")
        for key, sign in (("bytes_up", "up"), ("bytes_down", "down")):
            if key in self.seen:
                parts.append(f"{sign} {human_bytes(self.seen[key])}")
        while parts and room is not None and len("  ".join(parts)) > room:
            parts.pop()
        return "  ".join(parts)


def human_bytes(count: float) -> str:
    """Format a number of bytes with three digits and a decimal unit: 1234 gives '1.23 kB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def print_table(summary: Row, title: str) -> None:
    """Print a table to stdout, with lines for the start, the run, and those it is compared with.

    Args:
        summary: the last line of metrics.jsonl.
        title: the table's title.
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    table.add_column("")
    for heading in ("accuracy", "loss", "forwards", "skipped", "bytes up", "bytes down"):
        table.add_column(heading, justify="right", no_wrap=True)

    def line(name: str, prefix: str, *costs: str) -> None:
        loss = summary[prefix + "loss"]
        shown = "not finite" if loss is None else f"{loss:.3f}"
        table.add_row(name, f"{summary[prefix + 'accuracy']:.1%}", shown, *costs)

    line("before", "zero_shot_", "0", "0", "0 B", "0 B")
    for name, prefix in (("FedSPZO", ""), ("MeZO", "mezo_")):
        if prefix + "accuracy" in summary:
            line(
                name,
                prefix,
                f"{summary[prefix + 'forwards']:,.0f}",
                f"{summary.get(prefix + 'skipped', 0):,}",
                human_bytes(summary[prefix + "bytes_up"]),
                human_bytes(summary[prefix + "bytes_down"]),
            )
    fedavg = human_bytes(summary["fedavg_bytes"])
    table.add_row("FedAvg would send", "", "", "", "", fedavg, fedavg)
    PlainConsole().print(table)


def print_classes(summary: Row) -> None:
    """Print a table to stdout with each class's measures and its row of the confusion matrix.

    A summary without classes, or with more than `MOST_CLASSES`, has none.

    Args:
        summary: the last line of metrics.jsonl.
    """
    confusion = summary.get("confusion")
    if confusion is None or len(confusion["labels"]) > MOST_CLASSES:
        return
    title = f"on the test examples, macro F1 {summary['macro_f1']:.1%}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for heading in ("class", "precision", "recall", "F1"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for label in confusion["labels"]:
        table.add_column(f"as {escape(label)}", justify="right")
    for label, row in zip(confusion["labels"], confusion["rows"], strict=True):
        one = summary["classes"].get(label)
        if one is not None:
            shares = [f"{one[key]:.1%}" for key in ("precision", "recall", "f1")]
            table.add_row(escape(label), *shares, *map(str, row))
    PlainConsole().print(table)


def partition_lines(clients: Sequence[Mapping[str, int]], names: Sequence[str]) -> Iterator[str]:
    """Yield lines about the examples of each client, or of all together if there are many.

    Args:
        clients: for each client, its number of examples by label.
        names: the clients' names.
    """
    sizes = [sum(counts.values()) for counts in clients]
    few = sum(size == max(counts.values()) for size, counts in zip(sizes, clients, strict=True))
    line = f"{len(clients)} clients with {min(sizes)} to {max(sizes)} examples"
    if few and len({label for counts in clients for label in counts}) > 1:
        line += f", {few} of them with one label alone"
    yield line
    if len(clients) <= MOST_CLIENTS:
        for name, size, counts in zip(names, sizes, clients, strict=True):
            shares = sorted(counts.items(), key=lambda pair: -pair[1])[:MOST_CLASSES]
            labels = ", ".join(f"{count} {label}" for label, count in shares)
            yield f"  client {name}: {size} examples" + (f" ({labels})" if any(counts) else "")


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
        figure.suptitle(title, fontsize=12, fontweight="bold")
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

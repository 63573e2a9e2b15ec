"""Prints what a run came to: its tables on a terminal.

They are made from rows alone, as in metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .console import PlainConsole
from .human_bytes import human_bytes

Row = Mapping[str, Any]

MOST_CLASSES = 6
MOST_CLIENTS = 16


def print_table(summary: Row, title: str) -> None:
    """Print a table to stdout, with lines for the start, the run, and those it is compared with.

    Args:
        summary: the last line of metrics.jsonl.
        title: the table's title.
    """
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
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

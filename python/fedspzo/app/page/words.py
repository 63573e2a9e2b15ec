"""Puts a run's outcome into words and numbers: what a reader wants to know first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..human_bytes import human_bytes
from .recorded import RecordedRun, Row

GOOD, OPEN, BAD = "good", "open", "bad"
"""Kinds of a run's state, by which it is coloured."""

BY_LOSS = ("lm", "completion")
"""Types of tasks whose loss is said first."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Accuracy and loss at the start and at the end of a run. None: not known.

    Attributes:
        before, after: accuracy, in [0, 1].
        loss_before, loss_after: loss, in nats.
        on: the examples that these are of.
        round: the round that `after` and `loss_after` are of.
    """

    before: float | None
    after: float | None
    loss_before: float | None
    loss_after: float | None
    on: str
    round: int


def worth(run: RecordedRun) -> Worth:
    """Return what a run was worth, by its summary.

    An unfinished run is worth what its last evaluation says.
    """
    if run.summary is not None:
        return Worth(
            before=number(run.summary.get("zero_shot_accuracy")),
            after=number(run.summary.get("accuracy")),
            loss_before=number(run.summary.get("zero_shot_loss")),
            loss_after=number(run.summary.get("loss")),
            on="test",
            round=int(run.summary.get("kept_round", run.last["round"])),
        )
    known = [row for row in run.rows if row.get("accuracy") is not None] or [run.rows[0]]
    first, last = known[0], known[-1]
    return Worth(
        before=first.get("accuracy"),
        after=last.get("accuracy"),
        loss_before=first.get("loss"),
        loss_after=last.get("loss"),
        on="validation" if "validation" in run.settings.get("data", {}) else "test",
        round=last["round"],
    )


def state(run: RecordedRun) -> tuple[str, str]:
    """Return the kind of a run's state, and words for it."""
    done = run.last["round"]
    if run.summary is None:
        return OPEN, f"Unfinished: {done} of {run.planned or '?'} rounds"
    if run.summary.get("fault"):
        return BAD, "Ended badly"
    if run.planned is not None and done < run.planned:
        return GOOD, f"Stopped early, after {done} of {run.planned} rounds"
    return GOOD, f"Finished, {done} rounds"


def sentences(run: RecordedRun) -> Iterator[str]:
    """Yield sentences that say how a run went, the most important one first."""
    value = worth(run)
    parts = (
        ("Accuracy", value.before, value.after, percent),
        ("Loss", value.loss_before, value.loss_after, "{:.3f}".format),
    )
    for name, before, after, form in parts if run.task not in BY_LOSS else parts[::-1]:
        if before is None or after is None:
            continue
        verb = "stayed at" if form(before) == form(after) else "rose" if after > before else "fell"
        way = f" {form(after)}" if verb == "stayed at" else f" from {form(before)} to {form(after)}"
        yield f"{name} {verb}{way} on the {value.on} examples."
        break
    if run.summary is not None and run.summary.get("fault"):
        fault = str(run.summary["fault"])
        yield fault[:1].upper() + fault[1:] + "."
    mezo = number((run.summary or {}).get("mezo_accuracy"))
    if mezo is not None:
        yield f"MeZO has {percent(mezo)} after the same computation."
    if run.last["bytes_up"] > 0 and run.last["fedavg_bytes"] > 0:
        ratio = _round(run.last["fedavg_bytes"] / run.last["bytes_up"])
        yield (
            f"All clients together sent {amount(run.last['bytes_up'])}; federated averaging would"
            f" have sent {amount(run.last['fedavg_bytes'])}, about {ratio} times that."
        )
    yield " ".join(_troubles(run)) or "No report was rejected, and no step was skipped."


def _round(value: float) -> str:
    """Format a number with two digits: 22,211 gives '22,000'."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _troubles(run: RecordedRun) -> Iterator[str]:
    rejected = sum(len(row["rejected"]) for row in run.rows)
    if rejected:
        clients = len({one["client"] for row in run.rows for one in row["rejected"]})
        what = "report was" if rejected == 1 else "reports were"
        who = "1 client" if clients == 1 else f"{clients} clients"
        yield f"{rejected:,} {what} rejected, of {who}."
    if run.last["skipped"]:
        one = "step was skipped, as its loss was not finite."
        many = "steps were skipped, as their losses were not finite."
        yield f"{run.last['skipped']:,} {one if run.last['skipped'] == 1 else many}"


def amount(count: float) -> str:
    """Format a number of bytes with a blank that does not break."""
    return human_bytes(count).replace(" ", "\N{NO-BREAK SPACE}")


def percent(value: float) -> str:
    """Format a share: 0.9783 gives '97.8 %', with a blank that does not break."""
    return f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def short(value: float | None) -> str:
    """Format a number with four digits; None gives ''."""
    return "" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Format a time: 150.2 gives '2 min 30 s'."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def number(value: Any) -> float | None:
    """Return a value if it is a number, else None."""
    return float(value) if isinstance(value, int | float) else None


def asked(rows: Sequence[Row]) -> int:
    """Return how many different clients were asked."""
    return len({client for row in rows for client in row["clients"]})

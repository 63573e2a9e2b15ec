"""Puts the page together: what the template needs, from the runs that were read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from fedspzo import __version__

from ..human_bytes import human_bytes
from . import panels, tables, words
from .figures import AXES, COLORS
from .recorded import RecordedRun

GENERATOR = "fedspzo report"
"""Stands in the page, so that a page is known from other files."""


def render(runs: Sequence[RecordedRun]) -> str:
    """Return the page about some runs, as HTML that needs nothing from outside."""
    import vl_convert
    from jinja2 import Environment

    here = files(__package__)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (here / "page.html").read_text(encoding="utf-8")
    )
    curves = [*panels.outcomes(runs), *panels.steps(runs), *panels.privacy(runs)]
    clients = [panel for run in runs if (panel := panels.of_clients(run, runs)) is not None]
    differing, settings = tables.settings(runs)
    several = len(runs) > 1
    return template.render(
        title=f"{len(runs)} runs" if several else runs[0].name,
        generator=f"{GENERATOR} {__version__}",
        several=several,
        cards=[_card(run, number) for number, run in enumerate(runs)],
        comparable=len({run.measured_on for run in runs}) == 1,
        notes=[note for run in runs for note in run.notes],
        differing=differing,
        outcomes=tables.outcomes(runs),
        axes=AXES,
        curves=curves,
        clients=clients,
        classes=[table for run in runs if (table := tables.confusion(run)) is not None],
        settings=settings,
        environment=tables.environment(runs),
        digests=[tables.digests(run) for run in runs],
        data={
            "axes": AXES,
            "figures": {panel.id: panel.specification for panel in (*curves, *clients)},
        },
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
        library=_inline(vl_convert.javascript_bundle()),  # type: ignore[call-arg]  # its stub errs
    )


def _inline(script: str) -> str:
    """Return a script that can stand in HTML: nothing in its strings ends it early."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _card(run: RecordedRun, number: int) -> dict[str, Any]:
    """Return what the template shows of a run at the top."""
    value, last = words.worth(run), run.last
    kind, state = words.state(run)
    asked = words.asked(run.rows)
    total = run.settings.get("federation", {}).get("clients", asked)
    return {
        "name": run.name,
        "color": number % COLORS,
        "task": run.task,
        "model": run.settings.get("model", {}).get("name", ""),
        "kind": kind,
        "state": state,
        "sentences": list(words.sentences(run)),
        "worth": value,
        "majority": words.number((run.summary or {}).get("majority_accuracy")),
        "up": human_bytes(last["bytes_up"]),
        "down": human_bytes(last["bytes_down"]),
        "fedavg": human_bytes(last["fedavg_bytes"]),
        "forwards": f"{last['forwards']:,.0f}",
        "rounds": last["round"],
        "time": words.duration(last["seconds"]),
        "clients": f"{asked} of {total}",
        "rejected": sum(len(row["rejected"]) for row in run.rows),
        "skipped": last["skipped"],
        "percent": words.percent,
    }

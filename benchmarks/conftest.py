"""A table of medians and ratios after the benchmarks; --results FILE.md keeps it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import machine

import fedspzo_kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write the table of ratios to this file")


def table(benchmarks: list[Any]) -> list[str]:
    columns = list(dict.fromkeys(b.extra_info["column"] for b in benchmarks))
    groups: dict[str, dict[str, float]] = {}
    for b in benchmarks:
        nanoseconds = b.stats.median / b.extra_info["elements"] * 1e9
        groups.setdefault(b.group, {})[b.extra_info["column"]] = nanoseconds
    lines = [
        "| step | " + " | ".join(columns) + " | MeZO / fused | DeComFL / fused |",
        "|" + " --- |" * (len(columns) + 3),
    ]
    for group, times in groups.items():
        cells = [f"{times[c]:.2f}" if c in times else "" for c in columns]
        ratios = [
            f"**{times[c] / times['fused']:.1f}**" if {c, "fused"} <= times.keys() else ""
            for c in ("MeZO", "DeComFL")
        ]
        lines.append(f"| {group} | " + " | ".join(cells + ratios) + " |")
    return lines


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    done = [b for b in session.benchmarks if "column" in b.extra_info] if session else []
    if not done:
        return
    capability = fedspzo_kernels.info()["cpu_capability"]
    text = [
        f"{machine()}; {capability}; torch {torch.__version__}; {datetime.date.today()};"
        " medians of 3 rounds.",
        "Nanoseconds for each element and step (all passes), and ratios:",
        "",
        *table(done),
    ]
    terminalreporter.write_line("\n".join(text))
    if path := config.getoption("--results"):
        path.write_text("\n".join(["# Weight passes of one step", "", *text, ""]))

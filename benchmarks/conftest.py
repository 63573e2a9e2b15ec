"""A table of medians and ratios after the benchmarks; --results FILE.md keeps it."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

import fedspzo_kernels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write the table of ratios to this file")


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    info = fedspzo_kernels.info()
    return f"{model}, {info['cpu_capability']}, torch {torch.__version__}"


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
    text = [
        f"{machine()}; {datetime.date.today()}; medians of 3 rounds.",
        "Nanoseconds for each element and step (all passes), and ratios:",
        "",
        *table(done),
    ]
    terminalreporter.write_line("\n".join(text))
    if path := config.getoption("--results"):
        path.write_text("\n".join(["# Weight passes of one step", "", *text, ""]))

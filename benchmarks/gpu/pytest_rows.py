"""Part 2: a plugin for pytest that leaves a row after every test."""

from __future__ import annotations

import pytest

from .rows import record


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record a test's outcome once it is known."""
    if report.when == "call" or report.outcome != "passed":
        failed = {"failed": report.longreprtext[-2000:]} if report.failed else {}
        name = report.nodeid.rpartition("::")[2]
        record(name, outcome=report.outcome, seconds=round(report.duration, 2), **failed)

"""How many inputs the fuzz tests try, all together."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from fuzzing import PLANNED


def test_the_usual_test_run_tries_ten_thousand_inputs() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        if "@fuzz(" in path.read_text():
            import_module(path.stem)
    assert sum(PLANNED.values()) >= 10_000

"""What the docs tell to write, run as it stands there on a toy model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from federated_toys import ToyTask, toy, toy_data

from fedspzo.federated import FederationConfig, RunResult
from fedspzo.federated.aggregation import RULES

DOCS = Path(__file__).parent.parent / "docs"

pytestmark = pytest.mark.usefixtures("one_thread")


def follow(page: str, section: str) -> list[dict[str, Any]]:
    """Run a section's blocks of Python one after another, and give the names after each."""
    text = (DOCS / page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    names: dict[str, Any] = {"task": ToyTask(), "examples": toy_data([5, 9, 16])}
    after = []
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        names["blocks"] = toy()
        exec(compile(block, page, "exec"), names)
        after.append(dict(names))
    return after


def moved(result: RunResult) -> bool:
    return len({done.digest for done in result.rounds}) == len(result.rounds) == 3


def test_the_recipe_of_an_aggregation_rule() -> None:
    (names,) = follow("federation.md", "Adding an aggregation rule")
    assert moved(names["result"])
    federation: FederationConfig = names["federation"]
    assert federation.rule.name == "geometric-median"
    assert federation.rule.name not in RULES


def test_the_recipes_of_a_baseline() -> None:
    settings, strategy = follow("baselines.md", "Adding a baseline")
    assert moved(settings["result"])
    assert moved(strategy["result"])
    assert strategy["result"].final.forwards == 3 * 3 * 2
    model = strategy["blocks"].model
    assert all(weight.grad is None for weight in model.parameters())
    assert strategy["result"].final.loss < settings["result"].final.loss  # at a larger rate

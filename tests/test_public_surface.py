"""What users may import: the committed list of public names, and the imports that the docs show."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LISTED = ROOT / "tests/data/public_names.txt"
PUBLIC = (
    *("fedspzo", "fedspzo.federated", "fedspzo.integrations.transformers", "fedspzo.journal"),
    "fedspzo_kernels",
)

DOCUMENTED = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLES = sorted(ROOT.glob("examples/*/*.py"))


def public_names() -> list[str]:
    return sorted(f"{p}.{name}" for p in PUBLIC for name in importlib.import_module(p).__all__)


def imports_of_fedspzo(source: str) -> list[tuple[str, str]]:
    """List each (module, name) that `source` imports from this project."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return [
        (node.module, alias.name)
        for node in nodes
        if node.module and node.module.partition(".")[0] in ("fedspzo", "fedspzo_kernels")
        for alias in node.names
    ]


def test_public_names_are_those_of_the_committed_list() -> None:
    listed = LISTED.read_text().split()
    added, gone = set(public_names()) - set(listed), set(listed) - set(public_names())
    assert listed == public_names(), (
        f"{LISTED.name} lacks {sorted(added)} and lists {sorted(gone)}, which are gone; one name a "
        "line, sorted. If users are meant to see the change, edit the list and CHANGELOG.md."
    )


def test_public_names_can_be_imported() -> None:
    for name in public_names():
        package, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(package), attribute), name


@pytest.mark.parametrize("path", [*DOCUMENTED, *EXAMPLES], ids=lambda path: path.name)
def test_documents_import_public_names_alone(path: Path) -> None:
    text = path.read_text()
    sources = [text] if path.suffix == ".py" else re.findall(r"```python\n(.*?)```", text, re.S)
    for module, name in (pair for source in sources for pair in imports_of_fedspzo(source)):
        assert name in getattr(importlib.import_module(module), "__all__", ()), f"{module}.{name}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from fedspzo import SPZO, split", [("fedspzo", "SPZO"), ("fedspzo", "split")]),
        ("from fedspzo_kernels import noise", [("fedspzo_kernels", "noise")]),
        ("import torch\nfrom torch import nn", []),
    ],
)
def test_imports_are_found(source: str, found: list[tuple[str, str]]) -> None:
    assert imports_of_fedspzo(source) == found

"""The rules of the house: private names stay in their package, and packages say their purpose."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = {"fedspzo": ROOT / "python/fedspzo", "fedspzo_kernels": ROOT / "fedspzo_kernels"}
MODULES = [path for tree in TREES.values() for path in sorted(tree.rglob("*.py"))]
PACKAGES = [path for path in MODULES if path.name == "__init__.py"]


def package_of(path: Path) -> str:
    """Name the package that the module at `path` is in: `fedspzo.optim` for optim/spzo.py."""
    name, tree = next((n, t) for n, t in TREES.items() if path.is_relative_to(t))
    return ".".join((name, *path.parent.relative_to(tree).parts))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Name the module that `node`, in a module of `package`, imports from."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join((*parts[: len(parts) - node.level + 1], *filter(None, [node.module])))


def private_names_of_others(source: str, package: str) -> list[str]:
    """List the underscore names that `source`, a module of `package`, takes from other packages."""
    taken, modules = [], {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            home = absolute(node, package)
            if home.partition(".")[0] not in TREES:
                continue
            for alias in node.names:
                full = f"{home}.{alias.name}"
                modules[alias.asname or alias.name] = full
                inside = home == package or home.rpartition(".")[0] == package
                if not inside and any(map(is_private, full.split("."))):
                    taken.append(full)
        elif isinstance(node, ast.Import):
            modules |= {
                alias.asname: alias.name
                for alias in node.names
                if alias.asname and alias.name.partition(".")[0] in TREES
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            home = modules.get(ast.unparse(node.value), ast.unparse(node.value))
            if home.partition(".")[0] in TREES and home.rpartition(".")[0] != package:
                taken.append(f"{home}.{node.attr}")
    return taken


def test_no_package_takes_another_ones_private_names() -> None:
    taken = {
        path.relative_to(ROOT): private_names_of_others(path.read_text(), package_of(path))
        for path in MODULES
    }
    assert {path: names for path, names in taken.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        ("from .spzo import _groups", []),
        ("from . import _ops", []),
        ("from torch.utils import _pytree", []),
        ("from fedspzo.journal import reader\nreader.read()", []),
        ("from ..journal.reader import _parse", ["fedspzo.journal.reader._parse"]),
        ("from fedspzo_kernels import _ops", ["fedspzo_kernels._ops"]),
        ("from ..journal import reader\nreader._parse()", ["fedspzo.journal.reader._parse"]),
        ("import fedspzo.journal as j\nj._HOMES", ["fedspzo.journal._HOMES"]),
    ],
)
def test_private_names_are_found(source: str, taken: list[str]) -> None:
    assert private_names_of_others(source, "fedspzo.optim") == taken


@pytest.mark.parametrize("path", PACKAGES, ids=package_of)
def test_a_package_says_what_lives_there_and_what_it_may_import(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    purpose, *sentences = " ".join(text.split()).split(". ")
    assert len(purpose.split()) >= 4
    assert any(sentence.startswith(("May import ", "Imports ")) for sentence in sentences)

"""The docs speak of files and names that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "examples/README.md",
]


def defined(path: Path) -> set[str]:
    """Collect the classes, functions and methods of a module: `SPZO`, `SPZO.step`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{n.name}" for n in inner if isinstance(n, ast.FunctionDef)}
    return names


def prose(page: Path) -> str:
    """Read a page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)


def find(file: str) -> Path:
    """Find a module that the docs write as a path below its package."""
    found = [
        p for p in (ROOT / "python/fedspzo" / file, ROOT / "fedspzo_kernels" / file) if p.exists()
    ]
    assert found, f"there is no {file}"
    return found[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose(page))
    gone = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert gone == []


def test_links_to_headings_lead_somewhere() -> None:
    for page in PAGES:
        for file, heading in re.findall(r"\]\(([^):]*)#([^)]+)\)", prose(page)):
            text = (page.parent / file if file else page).read_text()
            titles = re.findall(r"^#+ (.*)$", text, re.M)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page.name}: {file}#{heading}"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_places_in_the_code_exist(page: str) -> None:
    places = re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / page).read_text())
    assert places
    gone = [f"{file}:{name}" for file, name in places if name not in defined(find(file))]
    assert gone == []


def test_tests_that_the_docs_name_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    names = set(re.findall(r"\b(test_[\w*]+\.py)\b", text))
    assert {name for name in names if not list((ROOT / "tests").glob(name))} == set()


def test_every_package_is_on_the_map() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = [p.parent.name for p in ROOT.glob("python/fedspzo/*/__init__.py")]
    assert [name for name in packages if not re.search(rf"\b{name}\b", text)] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")]
    assert [p for p in pages if f"]({p})" not in index and p != "README.md"] == []

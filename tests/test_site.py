"""The documentation as a site: `make docs` in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NAMES = (ROOT / "tests/data/public_names.txt").read_text().split()


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as `make docs` does. (--quiet would lose the warnings that strict counts.)"""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", site],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_documented(site: Path) -> None:
    text = "".join(page.read_text() for page in site.glob("api/*.html"))
    described = set(re.findall(r'id="([\w.]+)"', text))
    assert [name for name in NAMES if name not in described] == ["fedspzo.__version__"]


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = [page.relative_to(ROOT / "docs") for page in ROOT.glob("docs/**/*.md")]
    made = [site / page.with_suffix(".html") for page in pages if page.name != "README.md"]
    assert [page for page in [site / "index.html", *made] if not page.exists()] == []
    assert (site / "benchmarks/results/federation_scale.png").exists()
    assert "benchmarks/results/cpu.html" in (site / "kernels.html").read_text()


def test_a_page_loads_nothing_from_another_host(site: Path) -> None:
    loads = re.compile(r'<(script|img|iframe|link)[^>]* (src|href)="(https?:)?//')
    assert [page for page in site.glob("**/*.html") if loads.search(page.read_text())] == []


@pytest.mark.parametrize("link", ["no.md", "README.md#no"])
def test_a_link_that_leads_nowhere_stops_the_build(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/README.md").write_text(f"# A page\n\n[here]({link})\n")
    settings = ("nav: [README.md]", "plugins: []", "hooks: []", f"INHERIT: {ROOT / 'mkdocs.yml'}")
    (tmp_path / "mkdocs.yml").write_text("\n".join(settings))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert f"contains a link '{link}'" in done.stderr

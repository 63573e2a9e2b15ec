"""Brings the repository's pages outside docs/ into the site, and fits their links (mkdocs hooks).

Links lead from file to file, so that they work in the repository. In the site a page of docs/
stands at its root, other pages at their path, and what is no page (code, folders) is a name without
a link.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "benchmarks/results/*")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.suffix in (".md", ".png"):
                place = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point a page's links to where the files are in the site."""
    place = page.file.src_uri
    inside = (ROOT / "docs" / place).exists()
    folder = posixpath.dirname(posixpath.join("docs", place) if inside else place)

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        file, hash_, heading = target.partition("#")
        if not file or "://" in file:
            return found[0]
        source = posixpath.normpath(posixpath.join(folder, file))
        in_site = source.removeprefix("docs/")
        if files.get_file_from_path(in_site) is not None:
            path = posixpath.relpath(in_site, posixpath.dirname(place) or ".")
            return f"{mark}[{text}]({path}{hash_}{heading})"
        if not (ROOT / source).exists():
            return found[0]  # mkdocs tells of it
        return text

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)

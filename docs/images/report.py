"""Takes docs/images/report.png, the picture of a run's page: python docs/images/report.py RUN.

Needs the extra `report`, and Chromium or Chrome.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from fedspzo.app.cli import main

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from browser import Browser  # noqa: E402

WIDTH, HEIGHT = 1280, 1500


def take(run: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        page = Path(folder) / "page.html"
        if main(["report", run, "-o", str(page), "--quiet"]):
            sys.exit(2)
        browser.open(page, width=WIDTH, height=HEIGHT)
        browser.until("document.body && document.body.dataset.drawn")
        browser.screenshot(HERE / "report.png")


if __name__ == "__main__":
    take(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")

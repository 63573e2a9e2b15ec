"""The page of `fedspzo report` in a real browser: figures, no request, no script error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find
from tiny_run import write_run

from fedspzo.app.cli import main

pytestmark = pytest.mark.slow

FIGURES = {"accuracy-0", "loss-0", "gradients", "rates"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one.html, of one run, and three.html, of three.

    Of the three one is damaged, and one is measured on other examples, without a journal.
    """
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder)
    assert main(["run", str(folder / "run.toml"), "--output", str(folder / "run"), "--quiet"]) == 0
    other = folder / "other"
    shutil.copytree(folder / "run", other)
    (other / "journal.fspz").unlink()
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("test.csv", "other.csv"))
    damaged = folder / "damaged"
    shutil.copytree(folder / "run", damaged)
    journal = bytearray((damaged / "journal.fspz").read_bytes())
    journal[-200] ^= 1
    (damaged / "journal.fspz").write_bytes(journal)
    metrics = damaged / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    one, three = str(folder / "one.html"), str(folder / "three.html")
    assert main(["report", str(folder / "run"), "-o", one, "--quiet"]) == 0
    runs = [str(folder / name) for name in ("run", "damaged", "other")]
    assert main(["report", *runs, "-o", three, "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def shared() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture
def browser(shared: Browser) -> Browser:
    shared.requests.clear()
    shared.errors.clear()
    return shared


def show(browser: Browser, page: Path, **window: object) -> None:
    browser.open(page, **window)  # type: ignore[arg-type]
    drawn(browser, "forwards")


def drawn(browser: Browser, axis: str) -> None:
    browser.until(f"document.body && document.body.dataset.drawn === {axis!r}")


def assert_alone(browser: Browser, page: Path) -> None:
    """The page asked for nothing but itself, and nothing went wrong."""
    assert {url for url in browser.requests if not url.startswith("data:")} == {page.as_uri()}
    assert browser.errors == []


MARKS = """Object.fromEntries([...document.querySelectorAll("[data-figure]")].map((node) => [
    node.dataset.figure,
    node.querySelectorAll("svg .mark-line path, svg .mark-rect path").length,
]))"""
CURVES = "[data-figure]:not([data-figure^=clients])"
TITLES = f"""[...document.querySelectorAll("{CURVES} .role-axis-title text")]
    .map((node) => node.textContent)"""


def test_the_figures_of_a_run_are_drawn_without_any_request(browser: Browser, pages: Path) -> None:
    page = pages / "one.html"
    assert page.stat().st_size < 1_500_000
    show(browser, page)
    marks = browser.evaluate(MARKS)
    assert set(marks) == FIGURES | {"clients-0"}
    assert all(marks.values()), marks
    assert marks["accuracy-0"] == 2  # ours and MeZO's
    assert browser.evaluate("document.querySelector('h1').textContent") == "run"
    assert browser.evaluate("document.querySelectorAll('.note').length") == 0
    assert_alone(browser, page)


def test_curves_go_against_what_the_reader_chooses(browser: Browser, pages: Path) -> None:
    show(browser, pages / "one.html")
    assert set(browser.evaluate(TITLES)) == {"forward passes, all clients"}
    for axis, title in (
        ("seconds", "seconds since the start"),
        ("bytes", "bytes sent, up and down, all clients"),
        ("round", "rounds"),
    ):
        browser.evaluate(f"document.querySelector('input[value={axis}]').click()")
        drawn(browser, axis)
        assert set(browser.evaluate(TITLES)) == {title}
    assert browser.evaluate("document.querySelectorAll('[data-figure] svg').length") == 5
    assert_alone(browser, pages / "one.html")


def test_a_point_says_its_figures(browser: Browser, pages: Path) -> None:
    show(browser, pages / "one.html")
    browser.point_at("[data-figure=rates] svg", 0.5, 0.5)
    tooltip = "document.querySelector('#vg-tooltip-element.visible')"
    browser.until(f"{tooltip} !== null && getComputedStyle({tooltip}).visibility === 'visible'")
    text = browser.evaluate(f"{tooltip}.innerText")
    for part in ("block", "learning rate", "round", "passes", "seconds", "bytes"):
        assert part in text


def test_a_dark_system_has_a_dark_page(browser: Browser, pages: Path) -> None:
    stroke = "getComputedStyle(document.querySelector('.mark-line path')).stroke"
    back = "getComputedStyle(document.body).backgroundColor"
    show(browser, pages / "one.html")
    light = browser.evaluate(f"[{stroke}, {back}]")
    browser.look(dark=True)
    browser.until(f"{stroke} !== {light[0]!r}")
    assert browser.evaluate(back) == "rgb(14, 18, 23)" != light[1]
    browser.look(dark=False)
    browser.until(f"{stroke} === {light[0]!r}")
    assert_alone(browser, pages / "one.html")


@pytest.mark.parametrize("name", ["one", "three"])
def test_a_phone_shows_all_of_it(browser: Browser, pages: Path, name: str) -> None:
    show(browser, pages / f"{name}.html", width=360, height=740)
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    wide = "[...document.querySelectorAll('svg')].map((node) => node.getBoundingClientRect().right)"
    assert max(browser.evaluate(wide)) <= 360
    assert_alone(browser, pages / f"{name}.html")


def test_every_figure_has_its_table(browser: Browser, pages: Path) -> None:
    show(browser, pages / "one.html")
    rows = browser.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].map((node) =>"
        " [node.id, node.querySelectorAll('details tbody tr').length]))"
    )
    # rounds 0, 2 and 4 are evaluated, and some of MeZO's; 4 rounds have 2 blocks
    assert rows["figure-clients-0"] == 3
    assert rows["figure-accuracy-0"] == rows["figure-loss-0"] > 3
    assert rows["figure-gradients"] == rows["figure-rates"] == 8
    unnamed = "[...document.querySelectorAll('[role=img]')].filter((n) => !n.ariaLabel).length"
    assert browser.evaluate(unnamed) == 0
    assert browser.evaluate("[...document.querySelectorAll('table')].every((n) => n.caption)")


def test_runs_stand_side_by_side_and_damage_is_said(browser: Browser, pages: Path) -> None:
    page = pages / "three.html"
    show(browser, page)
    marks = browser.evaluate(MARKS)
    assert set(marks) == FIGURES | {"accuracy-1", "loss-1", "clients-0", "clients-1", "clients-2"}
    assert all(marks.values()), marks
    heading = "document.querySelector('main h2').textContent"
    assert browser.evaluate(heading) == "What differs in the settings"
    text = browser.evaluate("document.querySelector('main').innerText")
    assert "journal.fspz: record" in text
    assert "is damaged" in text
    assert "do not compare" in text
    assert "Unfinished: 4 of 4 rounds" in text
    assert_alone(browser, page)


def test_a_request_or_an_error_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>missing()</script>")
    browser.open(page)
    browser.until("document.images.length === 1 && document.images[0].complete")
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert any("missing is not defined" in error for error in browser.errors)


def test_without_a_browser_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("FEDSPZO_BROWSER", "")
    with pytest.raises(RuntimeError, match="install chromium"):
        find()

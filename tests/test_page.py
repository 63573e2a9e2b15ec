"""What `fedspzo report` reads of a run's folder, and what it makes of it."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_toys import row, summary, write

from fedspzo.app import installed
from fedspzo.app.cli import main
from fedspzo.app.page import clients, figures, panels, tables, words
from fedspzo.app.page.journal_facts import shares_of_update
from fedspzo.app.page.page import render
from fedspzo.app.page.recorded import RecordedRun, read, read_all
from fedspzo.errors import InputError
from fedspzo.federated.journal.rounds import Round
from fedspzo.federated.protocol.messages import Report
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars, Update
from fedspzo.federated.settings import FederationConfig, OptimizerConfig


@pytest.fixture(autouse=True)
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser's library takes seconds to put together, and is nothing to read here."""
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda: "")


def run(folder: Path, *rows: dict[str, Any], **summarised: Any) -> RecordedRun:
    end = summary(len(rows) - 1, **summarised) if summarised else None
    return read(write(folder, list(rows), end))


def test_a_run_that_is_being_written_is_unfinished(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [row(number) for number in range(5)])
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:4]) + '{"round": 4')
    found = read(folder)
    assert [one["round"] for one in found.rows] == [0, 1, 2, 3]
    assert words.state(found) == (words.OPEN, "Unfinished: 3 of 4 rounds")
    assert words.worth(found).round == 2
    assert not any("damaged" in note for note in found.notes)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is no JSON"),
        ("[]", "it is no JSON object"),
        (json.dumps(row(7)), "it is of round 7, not 2"),
        (json.dumps(row(2, forwards=None)), "forwards is None"),
        (json.dumps(row(2, loss="low")), "loss is 'low'"),
        (json.dumps(row(2, seconds=True)), "seconds is True"),
        (json.dumps(row(2)).replace("20.0", "1e999"), "forwards is inf"),
        (json.dumps(row(2, clients=3)), "clients, rejected and downloads are no lists"),
        (json.dumps(row(2, rejected=[1])), "an entry of rejected names no client"),
    ],
)
def test_damaged_metrics_are_shown_up_to_the_damage(tmp_path: Path, line: str, reason: str) -> None:
    folder = write(tmp_path / "a", [row(0), row(1), row(2)])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:2], line, lines[2]]) + "\n")
    found = read(folder)
    assert [one["round"] for one in found.rows] == [0, 1]
    assert f"metrics.jsonl, line 3 is damaged ({reason}); the 2 lines before it" in found.notes[0]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no metrics.jsonl; name a run's folder"):
        read(tmp_path)
    folder = write(tmp_path / "a", [row(0)])
    assert any("journal.fspz" in note for note in read(folder).notes)
    (folder / "config.toml").unlink()
    found = read(folder)
    assert found.notes[-1].endswith("there are no settings")
    assert words.state(found)[1] == "Unfinished: 0 of ? rounds"
    assert "a" in render([found])
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="no round is finished yet"):
        read(folder)


def test_runs_have_names_that_differ_and_are_shown_once(tmp_path: Path) -> None:
    one, other = write(tmp_path / "x/demo", [row(0)]), write(tmp_path / "y/demo", [row(0)])
    names = [found.name for found in read_all([one, other, one])]
    assert names == [str(one), str(other)]


def test_sentences_say_how_a_run_went(tmp_path: Path) -> None:
    rejected = [{"client": 1, "reason": "late"}, {"client": 2, "reason": "late"}]
    rows = [row(0), row(1, rejected=rejected), row(2, rejected=rejected[:1], skipped=1)]
    found = run(tmp_path / "a", *rows, mezo_accuracy=0.75)
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in words.sentences(found)] == [
        "Accuracy rose from 50.0 % to 80.0 % on the test examples.",
        "MeZO has 75.0 % after the same computation.",
        "All clients together sent 200 B; federated averaging would have sent 2 MB, about 10,000"
        " times that.",
        "3 reports were rejected, of 2 clients. 1 step was skipped, as its loss was not finite.",
    ]
    fault = "the run ended badly: the loss rose from 0.4 to 0.9; try a smaller rate"
    bad = run(tmp_path / "b", row(0), row(1), accuracy=0.5, fault=fault)
    assert words.state(bad) == (words.BAD, "Ended badly")
    first, second, *_ = words.sentences(bad)
    assert first.startswith("Accuracy stayed at 50.0")
    assert second == "The run ended badly: the loss rose from 0.4 to 0.9; try a smaller rate."
    rows = [row(0), row(1), row(2)]
    language = read(write(tmp_path / "c", rows, summary(2, loss=0.9), task="lm"))
    assert next(words.sentences(language)) == "Loss rose from 0.700 to 0.900 on the test examples."
    settings = {**language.settings, "federation": {"rounds": 9}}
    early = replace(language, settings=settings)
    assert words.state(early) == (words.GOOD, "Stopped early, after 2 of 9 rounds")


def test_settings_that_differ_come_apart(tmp_path: Path) -> None:
    runs = [
        read(write(tmp_path / "a", [row(0)], lr=1e-3)),
        read(write(tmp_path / "b", [row(0)], lr=0.5, test="other")),
    ]
    differing, every = tables.settings(runs)
    assert differing.rows == [
        ["[data] test", "/data/test.csv", "/data/other.csv"],
        ["[optimizer] lr", "0.001", "0.5"],
    ]
    assert ["[federation] clients", "3", "3"] in every.rows


def test_runs_on_other_examples_have_figures_of_their_own(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3)]
    same = [read(write(tmp_path / name, rows)) for name in ("a", "b")]
    other = read(write(tmp_path / "c", rows, test="other"))
    ids = [panel.id for panel in panels.outcomes([*same, other])]
    assert ids == ["accuracy-0", "loss-0", "accuracy-1", "loss-1"]
    assert [panel.id for panel in panels.outcomes(same)] == ["accuracy-0", "loss-0"]
    language = read(write(tmp_path / "d", rows, task="lm"))
    assert [panel.id for panel in panels.outcomes([language])] == ["loss-0", "accuracy-0"]


@pytest.mark.parametrize("judge", ["test_share", "validation"])
def test_runs_compare_on_a_share_only_if_it_holds_the_same_examples(
    tmp_path: Path, judge: str
) -> None:
    """A share's examples follow from the file, the share and the seed."""

    def shared(name: str, seed: int = 0, **data: object) -> RecordedRun:
        found = read(write(tmp_path / name, [row(0)]))
        given = {"train": "/data/train.csv", judge: 0.25, **data}
        return replace(
            found, settings={**found.settings, "data": given, "federation": {"seed": seed}}
        )

    one = shared("a")
    others = [
        shared("c", seed=1),
        shared("d", **{judge: 0.5}),
        shared("e", train="/data/other.csv"),
        shared("f", **{"validation" if judge == "test_share" else "test_share": 0.1}),
    ]
    for other in others:
        ids = [panel.id for panel in panels.outcomes([one, shared("b" + other.name), other])]
        assert ids == ["accuracy-0", "loss-0", "accuracy-1", "loss-1"], other.name


def test_a_curve_that_diverges_does_not_flatten_the_others(tmp_path: Path) -> None:
    found = run(tmp_path / "a", row(0), row(2, round=1), row(4, round=2, train_loss=0.6))
    wild = replace(found, mezo=[row(0), row(2, loss=50.0)])

    def highest(one: RecordedRun) -> float | None:
        loss = panels.outcomes([one])[1].specification
        return next(
            layer["encoding"]["y"]["scale"].get("domainMax")
            for layer in loss["layer"]
            if layer["mark"]["type"] == "line"
        )

    assert highest(found) is None
    assert highest(wild) == pytest.approx(1.3 * 0.7)


def test_curves_are_thinned_with_their_ends(tmp_path: Path) -> None:
    kept = figures.thinned(list(range(10_001)), 400)
    assert len(kept) <= 402
    assert (kept[0], kept[-1]) == (0, 10_000)
    assert figures.thinned([1, 2, 3], 400) == [1, 2, 3]
    assert figures.thinned([], 400) == []


def test_clients_are_counted_and_put_together(tmp_path: Path) -> None:
    rejected = [{"client": 7, "reason": "late"}]
    rows = [row(0)]
    for number in range(1, 251):
        bad = rejected if number % 5 == 0 else []
        rows.append(row(number, clients=list(range(60)), rejected=bad, downloads=[2]))
    found = run(tmp_path / "a", *rows)
    every = clients.totals(found)
    assert len(every) == 60
    assert (every[7].asked, every[7].rejected, every[7].reason) == (250, 50, "late")
    assert (every[2].downloads, every[2].share, every[2].loss) == (250, None, None)
    chosen = clients.shown(every)
    assert len(chosen) == clients.MOST_CLIENTS
    assert 7 in chosen
    cells = clients.cells(found, chosen)
    first = [cell for cell in cells if cell.client == 7]
    assert len(first) <= clients.MOST_ROUNDS
    assert sum(cell.rejected for cell in first) == 50
    assert (first[0].first, first[-1].last) == (1, 250)


def scalars(*values: float) -> Scalars:
    return Scalars(1, (0,), np.array([values], np.float32))


def round_of(*entries: tuple[int, Scalars]) -> Round:
    reports = tuple(
        Report(
            round=0,
            client=client,
            digest="0" * 32,
            examples=10 * (client + 1),
            gradients=scalars(1.0, 1.0, 1.0),
            loss=0.5,
            forwards=2.0,
        )
        for client in (0, 1)
    )
    known = {"digest": "0" * 32, "bytes_down": 1, "bytes_up": 1, "seconds": 1.0, "lr": (1.0, 1.0)}
    return Round(reports=reports, update=Update(0, entries), **known)


def test_a_clients_share_is_of_the_updates_squared_length() -> None:
    optimizer = OptimizerConfig(lr=(1.0, 1.0), perturbations=(1, 2))
    own = FederationConfig(clients=2, rounds=1)
    sizes = np.array([1000.0, 10.0])
    # client 0 moves 1000 weights by 1, client 1 ten weights by 3 and by 4
    done = round_of((0, scalars(1.0, 0.0, 0.0)), (1, scalars(0.0, 3.0, 4.0)))
    share = shares_of_update(done, sizes, own, optimizer)
    assert share == pytest.approx({0: 1000 / 1250, 1: 250 / 1250})
    shared = FederationConfig(clients=2, rounds=1, seeds="shared")
    done = round_of((EVERYBODY, scalars(1.0, 1.0, 1.0)))
    assert shares_of_update(done, sizes, shared, optimizer) == pytest.approx({0: 1 / 3, 1: 2 / 3})
    nothing = round_of((0, scalars(0.0, 0.0, 0.0)), (1, scalars(0.0, 0.0, 0.0)))
    assert shares_of_update(nothing, sizes, own, optimizer) == {}


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_texts_of_others_are_never_markup(tmp_path: Path) -> None:
    rejected = [{"client": 1, "reason": HOSTILE}]
    folder = write(tmp_path / "a", [row(0), row(1, rejected=rejected)], summary(1, fault=HOSTILE))
    found = replace(read(folder), name=HOSTILE, notes=(HOSTILE,))
    page = render([found, replace(found, name="b")])
    assert "<script>alert" not in page
    assert "<img" not in re.sub(r'<script type="module">.*?</script>', "", page, flags=re.S)
    assert len(re.findall(r"</script>", page)) == 3


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_the_command_writes_the_page_beside_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "a", [row(0), row(1)])
    other = write(tmp_path / "b", [row(0)])
    assert report(folder) == 0
    assert "report.html shows the run" in capsys.readouterr().out
    assert report(folder) == 0  # a page is replaced
    assert report(folder, other, "-o", tmp_path / "both.html", "--quiet") == 0
    assert "What differs in the settings" in (tmp_path / "both.html").read_text()
    before = (folder / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert report(folder, "-o", folder / "metrics.jsonl") == 2
    assert "is no such page; name another after -o" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_text() == before
    assert report(folder, "-o", folder) == 2
    assert "is a folder" in capsys.readouterr().err
    assert report(folder, "-o", tmp_path / "gone/page.html") == 2
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "odd",
    [
        {"kept_round": "x"},
        {"confusion": {"labels": 3, "rows": []}},
        {"confusion": {"labels": ["a"], "rows": [[1]]}, "classes": {"a": {"precision": 1}}},
        {"seconds": None},
    ],
)
def test_a_summary_with_wrong_values_is_one_line(
    tmp_path: Path, odd: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "a", [row(0), row(1)], summary(1, **odd))
    assert report(folder) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be shown" in error
    assert not (folder / "report.html").exists()


def test_the_command_without_its_extra_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> Any:
        return None if name == "vl_convert" else importlib.util.find_spec(name)

    monkeypatch.setattr(installed, "find_spec", without)
    assert report(write(tmp_path / "a", [row(0)])) == 2
    line = "report needs vl_convert, which is not installed; pip install 'fedspzo[report]'"
    assert line in capsys.readouterr().err


def test_a_wheel_has_the_pages_files() -> None:
    root = Path(__file__).parent.parent
    setup = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = {
        path.name
        for path in (root / "python/fedspzo/app/page").iterdir()
        if path.is_file() and path.suffix != ".py"
    }
    assert set(setup["package-data"]["fedspzo.app.page"]) == files
    assert "fedspzo.app.page" in setup["packages"]

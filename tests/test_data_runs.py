"""Runs on files as people have them: one file, and what the config that a run leaves says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import write_run

from fedspzo.app import config as configuration
from fedspzo.app.cli import main
from fedspzo.app.config import to_toml
from fedspzo.app.sources import HubData

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_one_file_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    texts = [
        f"a {w} film {n}\t{v}" for n in range(8) for w, v in (("fine", "good"), ("dull", "bad"))
    ]
    Path("all.csv").write_text("\n".join(["text\tlabel", *texts]), encoding="utf-16")
    one = 'train = "all.csv"\ntest_share = 0.25\nencoding = "utf-16"\n'
    config = Path("run.toml").read_text()
    config = config.replace('train = "train.jsonl"\ntest = "test.csv"\n', one)
    config = config.replace("[mezo]\nlr = 1e-3\n", "")
    Path("one.toml").write_text(config)
    assert main(["run", "one.toml", "--quiet", "--output", "out"]) == 0
    left = configuration.load("out/config.toml")
    assert (left.data.test, left.data.test_share, left.data.encoding) == (None, 0.25, "utf-16")
    assert main(["run", "--resume", "out", "--rounds", "5", "--quiet"]) == 0
    assert main(["run", "one.toml", "--overwrite", "--quiet", "--output", "out"]) == 0
    with Path("all.csv").open("a", encoding="utf-16-le") as file:
        file.write("\na new film\tgood")
    assert main(["run", "--resume", "out", "--rounds", "5", "--quiet"]) != 0
    assert "all.csv: has changed since" in capsys.readouterr().err


def test_a_dataset_of_the_hub_is_named_in_the_config_that_a_run_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    for value in ("hub:a/films", "hub:a/films:plain#train[:2]"):
        Path("hub.toml").write_text(
            Path("run.toml").read_text().replace('"train.jsonl"', json.dumps(value))
        )
        loaded = configuration.load("hub.toml")
        assert loaded.data.train == HubData(value)
        Path("left.toml").write_text(to_toml(loaded))
        assert configuration.load("left.toml").data == loaded.data.__class__(
            **{**vars(loaded.data), "test": Path("test.csv").resolve()}
        )

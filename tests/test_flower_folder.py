"""`fedspzo flower` and [engine]: what they write and refuse. None of it needs Flower."""

from __future__ import annotations

import json
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_run import write_run

from fedspzo.app import config as configuration
from fedspzo.app.cli import main
from fedspzo.app.clients import deal
from fedspzo.app.data import read_splits

pytestmark = pytest.mark.slow  # the model of the config is written by transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    write_run(made)
    return made


def changed(folder: Path, old: str, new: str) -> Path:
    """The config with a change."""
    text = (folder / "run.toml").read_text()
    assert old in text
    path = folder / "changed.toml"
    path.write_text(text.replace(old, new))
    return path


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which a command fails."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    return lines[0]


class TestApp:
    def test_the_folder_has_what_flower_needs(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        app = tmp_path / "an-app"
        assert main(["flower", str(folder / "run.toml"), "-o", str(app)]) == 0
        assert "[mezo] is left out" in capsys.readouterr().out
        described = tomllib.loads((app / "pyproject.toml").read_text())
        assert described["project"]["name"] == "fedspzo-run"
        ours = described["tool"]["flwr"]["app"]
        for which, place in ours["components"].items():
            module, _, name = place.partition(":")
            code = (app / f"{module.replace('.', '/')}.py").read_text()
            assert f"{name} = {which.removesuffix('app')}_app(" in code
            compile(code, module, "exec")
        assert Path(ours["config"]["output"]) == (Path.cwd() / "runs" / "run")
        assert json.loads((app / "fedspzo_app" / "labels.json").read_text()) == ["good", "bad"]

    def test_no_example_is_in_it(self, folder: Path, tmp_path: Path) -> None:
        app = tmp_path / "app"
        assert main(["flower", str(folder / "run.toml"), "-o", str(app)]) == 0
        for path in app.rglob("*"):
            assert path.is_dir() or b"dull film" not in path.read_bytes()

    def test_its_config_is_that_of_the_run(self, folder: Path, tmp_path: Path) -> None:
        app = tmp_path / "app"
        assert main(["flower", str(folder / "run.toml"), "-o", str(app)]) == 0
        before = configuration.load(folder / "run.toml")
        after = configuration.load(app / "fedspzo_app" / "config.toml")
        assert after.mezo is None
        for name in ("model", "task", "data", "federation", "optimizer"):
            assert getattr(after, name) == getattr(before, name)

    @pytest.mark.parametrize("name", ["an_app", "1app", "a" * 33])
    def test_a_name_that_flower_refuses_is_refused(
        self, folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = error(capsys, "flower", folder / "run.toml", "-o", tmp_path / name)
        assert "letters, digits and hyphens" in line
        assert not (tmp_path / name).exists()

    def test_a_folder_with_files_is_left_alone(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        app = tmp_path / "app"
        app.mkdir()
        (app / "mine.txt").write_text("mine")
        assert "is there already" in error(capsys, "flower", folder / "run.toml", "-o", app)
        assert [path.name for path in app.iterdir()] == ["mine.txt"]
        (tmp_path / "link").symlink_to(app)
        link = tmp_path / "link"
        assert "is a link" in error(capsys, "flower", folder / "run.toml", "-o", link)

    def test_privacy_is_refused(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        private = "[privacy]\nclip = 1.0\nnoise_multiplier = 1.0\n[output]"
        path = changed(folder, "[mezo]\nlr = 1e-3\n[output]", private)
        assert "[privacy]" in error(capsys, "flower", path, "-o", tmp_path / "app")

    def test_a_share_of_train_for_validation_is_refused(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = changed(folder, "[federation]", "validation = 0.25\n[federation]")
        assert "give a file" in error(capsys, "flower", path, "-o", tmp_path / "app")

    def test_a_share_of_train_to_test_on_is_refused(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = changed(folder, 'test = "test.csv"', "test_share = 0.25")
        assert "give test a file" in error(capsys, "flower", path, "-o", tmp_path / "app")


class TestEngine:
    def test_processes_belong_to_flower(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = changed(folder, "[output]", "[engine]\nprocesses = 2\n[output]")
        assert "set name = 'flower'" in error(capsys, "run", path)

    def test_privacy_is_refused(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        private = "[privacy]\nclip = 1.0\nnoise_multiplier = 1.0\n"
        engine = private + '[engine]\nname = "flower"\n[output]'
        path = changed(folder, "[mezo]\nlr = 1e-3\n[output]", engine)
        assert "[engine] name is 'flower'" in error(capsys, "run", path)

    def test_a_missing_flower_is_said_with_the_remedy(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = changed(folder, "[output]", '[engine]\nname = "flower"\n[output]')
        if find_spec("flwr") is None:
            assert "pip install 'fedspzo[flower]'" in error(capsys, "run", path)

    def test_in_process_is_a_run_without_the_section(self, folder: Path) -> None:
        path = changed(folder, "[output]", '[engine]\nname = "in-process"\n[output]')
        assert not configuration.load(path).on_flower
        assert configuration.load(folder / "run.toml").engine is None


class TestParticipants:
    def test_a_server_reads_no_training_examples(self, folder: Path) -> None:
        config = configuration.load(folder / "run.toml")
        config.data.train.rename(folder / "hidden")
        try:
            splits = read_splits(config.data, config.task, only=("test",), known=("good", "bad"))
        finally:
            (folder / "hidden").rename(config.data.train)
        assert splits.train == []
        assert [one.label for one in splits.test] == ["good", "bad"]
        assert deal(config, splits, lambda examples: []) == [[]] * 3

    def test_a_client_may_lack_a_label(self, folder: Path) -> None:
        config = configuration.load(folder / "run.toml")
        own = folder / "own.jsonl"
        own.write_text('{"text": "a fine film", "label": "good"}\n')
        changes = {"data": {"train": str(own)}}
        mine = configuration.load(config.path, changes)
        splits = read_splits(mine.data, mine.task, only=("train",), known=("good", "bad"))
        assert splits.labels == ("good", "bad")
        assert [one.text for one in splits.train] == ["a fine film"]

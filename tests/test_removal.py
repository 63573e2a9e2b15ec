"""What a run replaces is never its own input, nor the run of another config."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_run import write_run

from fedspzo.app import config as configuration
from fedspzo.app.cli import main
from fedspzo.app.data import read_splits
from fedspzo.app.removal import check_removal
from fedspzo.app.resume import identity
from fedspzo.app.run_folder import RunFolder
from fedspzo.errors import InputError
from fedspzo.journal.writer import write_whole

HEADER = {
    "base": "0" * 32,
    "source": "net",
    "parameters": [],
    "model": None,
    "stream": "normal-v1",
    "program": "test",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a config, data and a base model."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    return tmp_path


def leave_a_run(folder: Path, config: Path, *, known: bool = True) -> None:
    """Leave the files of a run of `config` that ended."""
    made = configuration.load(config).with_overrides(output=folder)
    run = identity(made, read_splits(made.data, made.task), {})
    folder.mkdir()
    write_whole(folder / "journal.fspz", {**HEADER, "run": run if known else None}, [])
    (folder / "metrics.jsonl").write_text('{"summary": true}\n')
    if known:
        (folder / "config.toml").write_text(configuration.to_toml(made))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for part in parts:
        assert part in error


@pytest.mark.parametrize("link", [False, True])
def test_a_run_does_not_replace_its_own_base(
    here: Path, capsys: pytest.CaptureFixture[str], link: bool
) -> None:
    leave_a_run(here / "out", here / "run.toml")
    if link:
        (here / "out" / "model").symlink_to(here / "net")
    else:
        shutil.copytree("net", "out/model")
    text = Path("run.toml").read_text()
    Path("again.toml").write_text(text if link else text.replace('"net"', '"out/model"'))
    arguments = ["run", "again.toml", "--output", "out", "--overwrite", "--quiet"]
    refused(arguments, capsys, "[model] name is", "copy it elsewhere")
    assert (here / "out" / "model" / "config.json").exists()
    assert (here / "out" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["mezo.jsonl", "model/train.jsonl"])
def test_a_run_does_not_replace_its_own_data(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = Path("out", name)
    path.parent.mkdir(parents=True)
    Path("train.jsonl").rename(path)
    Path("out/metrics.jsonl").write_text("")
    Path("run.toml").write_text(
        Path("run.toml").read_text().replace('"train.jsonl"', f'"out/{name}"')
    )
    arguments = ["run", "run.toml", "--output", "out", "--overwrite", "--quiet"]
    refused(arguments, capsys, "[data] train is", "copy it elsewhere")
    assert path.read_text()


def test_overwrite_leaves_the_run_of_another_config_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("net", "other")
    Path("other.toml").write_text(Path("run.toml").read_text().replace('"net"', '"other"'))
    leave_a_run(here / "out", here / "other.toml")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    arguments = ["run", "run.toml", "--output", "out", "--overwrite", "--quiet"]
    refused(arguments, capsys, "the run of another config, whose [model] name is", "remove it")
    refused(["demo", "--output", "out", "--quiet"], capsys, "the run of another config")
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_run_of_which_nothing_is_known_is_left_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_a_run(here / "out", here / "run.toml", known=False)
    arguments = ["run", "run.toml", "--output", "out", "--overwrite", "--quiet"]
    refused(arguments, capsys, "a run of which no config is left")


def test_the_configs_own_run_may_be_replaced(here: Path) -> None:
    shutil.copytree("net", "other")
    leave_a_run(here / "out", here / "run.toml")
    run = Path("run.toml").read_text()
    Path("run.toml").write_text(run.replace('"net"', '"other"'))  # the same file, edited
    Path("moved.toml").write_text(
        run.replace("rounds = 4", "rounds = 9")
    )  # the same model and data
    for name in ("run.toml", "moved.toml"):
        with RunFolder(here / "out", overwrite=True) as folder:
            check_removal(folder, configuration.load(here / name))
    Path("out/journal.fspz").write_bytes(b"damaged")
    with RunFolder(here / "out", overwrite=True) as folder:
        check_removal(folder, configuration.load(here / "moved.toml"))
        with pytest.raises(InputError, match="another config"):
            check_removal(folder, configuration.load(here / "run.toml"))

"""A run that ends badly says so, in one line with a remedy, and by exit code 4."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import write_run

from fedspzo.app import config as configuration
from fedspzo.app.cli import main, plain_warnings
from fedspzo.app.ending import fault
from fedspzo.app.prompts import PromptClassification

RUN = ["run", "run.toml", "--output", "out"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_run(tmp_path)
    Path("run.toml").write_text(Path("run.toml").read_text().replace("[mezo]\nlr = 1e-3\n", ""))
    return tmp_path


SOUND = {"rounds": 4, "skipped": 0, "zero_shot_loss": 0.7, "loss": 0.4}
STEPS = 4 * 2 * 2  # rounds, participants, local steps
ENDS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"loss": 0.7}, None),
    ({"loss": 0.769}, None),  # by chance
    ({"skipped": STEPS // 2}, None),
    ({"zero_shot_loss": None}, None),  # it has become finite
    ({"loss": 0.771}, "the loss rose from 0.7 to 0.771"),
    ({"loss": -0.3, "zero_shot_loss": -0.4}, "the loss rose from -0.4 to -0.3"),
    ({"loss": None}, "the loss at the end is not finite"),
    ({"loss": math.inf}, "the loss at the end is not finite"),
    ({"skipped": STEPS // 2 + 1}, f"9 of {STEPS} steps were skipped"),
    ({"skipped": STEPS // 2, "rounds": 2}, "8 of 8 steps were skipped"),  # patience ended it
]


@pytest.mark.parametrize(("changes", "expected"), ENDS)
def test_which_end_is_bad(here: Path, changes: dict[str, Any], expected: str | None) -> None:
    found = fault({**SOUND, **changes}, configuration.load("run.toml"), 100)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"the run ended badly: {expected}")
        assert 'try [optimizer] lr = "auto"' in found


@pytest.mark.parametrize(
    ("old", "new", "remedy"),
    [
        ("lr = 1e-3", 'lr = "auto"', "a larger [federation] batch_size"),
        (
            "lr = 1e-3",
            "lr = 1e-3\n[privacy]\nclip = 1.0\nnoise_multiplier = 1.0",
            "noise_multiplier",
        ),
        ('"float32"', '"float16"', 'dtype = "bfloat16"'),
    ],
)
def test_the_remedy_follows_from_the_config(here: Path, old: str, new: str, remedy: str) -> None:
    text = Path("run.toml").read_text()
    assert old in text
    Path("run.toml").write_text(text.replace(old, new))
    assert remedy in (fault({**SOUND, "loss": 2.0}, configuration.load("run.toml"), 100) or "")


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_run_whose_losses_are_not_finite_ends_with_code_4(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    quiet: list[str],
) -> None:
    scores = PromptClassification.scores
    monkeypatch.setattr(
        PromptClassification, "loss", lambda task, *args: scores(task, *args)[0].sum() * math.nan
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main([*RUN, *quiet]) == 4
    assert not caught
    error = capsys.readouterr().err
    assert "Warning" not in error
    assert ".py:" not in error
    line = error.splitlines()[-1]
    assert line.startswith("fedspzo: error: the run ended badly: 16 of 16 steps were skipped")
    if quiet:
        assert error.count("\n") == 1
    else:
        assert "16 steps skipped" in error
        assert "round 3: client 1: none of its steps had a finite loss" in caplog.text
    summary = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])
    assert summary["skipped"] == 16
    assert line.endswith(summary["fault"])
    assert Path("out/model").is_dir()


@pytest.mark.slow
def test_a_base_whose_weights_are_not_finite_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("net/model.safetensors")
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][0, 3] = math.nan
    save_file(weights, path, metadata={"format": "pt"})
    assert main([*RUN, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'model.layers.1.mlp.up_proj.weight' 1 of 512 elements are not finite" in error
    assert not Path("out").exists()


def test_warnings_of_ours_are_one_line_and_others_are_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = str(Path(configuration.__file__))
    for quiet in (False, True):
        with plain_warnings(quiet=quiet):
            warnings.warn_explicit("mind this", UserWarning, ours, 1)
            warnings.warn_explicit("fedspzo: no cuda backend", RuntimeWarning, ours, 2)
            warnings.warn_explicit("step 3 was skipped: losses", UserWarning, ours, 3)
            warnings.warn_explicit("is deprecated", FutureWarning, "/lib/transformers/x.py", 4)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "fedspzo: mind this\nfedspzo: no cuda backend\n"


def test_a_config_without_optimizer_finds_its_rates(here: Path) -> None:
    text = Path("run.toml").read_text().replace("[optimizer]\nlr = 1e-3\n", "")
    Path("run.toml").write_text(text)
    assert configuration.load("run.toml").optimizer.lr == "auto"
    Path("run.toml").write_text(text + "[optimizer]\nperturbations = [1, 4]\n")
    assert configuration.load("run.toml").optimizer.lr == "auto"

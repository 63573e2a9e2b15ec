"""The best round is kept, training stops when it gets no better, and a run can be extended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_toys import stop_at
from tiny_run import write_run

from fedspzo.app import config as configuration
from fedspzo.app.best_round import best_round, out_of_patience
from fedspzo.app.cli import main
from fedspzo.app.data import read_splits
from fedspzo.app.measures import Measured, by_class
from fedspzo.app.prompts import PromptClassification
from fedspzo.app.tasks import Task
from fedspzo.errors import InputError


def rows_with(*values: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    return [
        {"round": number, "accuracy": accuracy, "loss": loss}
        for number, (accuracy, loss) in enumerate(values)
    ]


def test_the_best_round_has_the_highest_accuracy_and_then_the_lowest_loss() -> None:
    rows = rows_with((0.5, 0.7), (None, None), (0.8, 0.5), (0.8, 0.4), (0.8, 0.4), (0.7, 0.3))
    assert best_round(rows, by_loss=False) == 3
    assert best_round(rows, by_loss=True) == 5
    assert best_round(rows_with((0.5, 0.7), (0.9, None)), by_loss=False) == 0
    assert best_round(rows_with((0.5, None), (0.5, None)), by_loss=False) == 1


def test_patience_counts_the_evaluations_since_the_best_round() -> None:
    rows = rows_with((0.5, 0.7), (0.8, 0.5), (0.7, 0.4), (None, None), (0.8, 0.5))
    assert not out_of_patience(rows[:3], 2, by_loss=False)
    assert out_of_patience(rows[:3], 1, by_loss=False)
    assert not out_of_patience(rows[:4], 1, by_loss=False)  # it was not evaluated
    assert out_of_patience(rows, 2, by_loss=False)
    assert not out_of_patience(rows, 3, by_loss=False)
    diverged = rows_with((0.5, 0.7), (0.5, None), (0.5, None))
    assert out_of_patience(diverged, 2, by_loss=False)


def test_measures_by_class() -> None:
    confusion = ((8, 2, 0), (4, 6, 0), (0, 0, 0))
    found = by_class(Measured(loss=0.5, accuracy=0.7, confusion=confusion), ("a", "b", "c"))
    assert found["classes"] == {
        "a": {"precision": 8 / 12, "recall": 0.8, "f1": 16 / 22, "examples": 10},
        "b": {"precision": 6 / 8, "recall": 0.6, "f1": 12 / 18, "examples": 10},
    }
    assert found["macro_f1"] == pytest.approx((16 / 22 + 12 / 18) / 2)
    assert found["confusion"] == {"labels": ["a", "b", "c"], "rows": [list(r) for r in confusion]}
    never = by_class(Measured(loss=0.5, accuracy=0.0, confusion=((0, 3), (0, 0))), ("a", "b"))
    assert never["macro_f1"] == 0
    assert by_class(Measured(loss=0.5, accuracy=0.7), ()) == {}


# --- the configuration and the data ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_run(tmp_path)
    return tmp_path


def change(old: str, new: str) -> None:
    text = Path("run.toml").read_text()
    assert old in text
    Path("run.toml").write_text(text.replace(old, new))


def test_a_share_is_set_aside_by_label_and_seed(here: Path) -> None:
    rows = [{"text": f"{n}", "label": "good" if n % 4 else "bad"} for n in range(40)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change('test = "test.csv"', 'test = "test.csv"\nvalidation = 0.2')
    config = configuration.load("run.toml")
    splits = read_splits(config.data, config.task, 3)
    labels = [example.label for example in splits.validation]
    assert (labels.count("good"), labels.count("bad")) == (6, 2)
    assert {*splits.train} | {*splits.validation} == {*read_splits_of_all(config)}
    assert len(splits.train) == 32
    assert read_splits(config.data, config.task, 3) == splits
    assert read_splits(config.data, config.task, 4).validation != splits.validation
    Path("copy.toml").write_text(configuration.to_toml(config))
    assert configuration.load("copy.toml").data.validation == 0.2


def read_splits_of_all(config: configuration.Config) -> list[Any]:
    from dataclasses import replace

    return read_splits(replace(config.data, validation=None), config.task).train


def test_a_share_leaves_each_label_one_example(here: Path) -> None:
    change('test = "test.csv"', 'test = "test.csv"\nvalidation = 0.99')
    config = configuration.load("run.toml")
    assert len(read_splits(config.data, config.task).train) == 2
    change("0.99", "0.01")
    config = configuration.load("run.toml")
    with pytest.raises(InputError, match=r"validation is 0\.01, a share of its 8 examples"):
        read_splits(config.data, config.task)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"test.csv"', '"test.csv"\nvalidation = 1.0', "give a file, or a share between 0 and 1"),
        ('"test.csv"', '"test.csv"\nvalidation = true', "give a path in quotes or a number"),
        ('"test.csv"', '"test.csv"\nvalidation = "train.jsonl"', "the same file as train"),
        ('"test.csv"', '"test.csv"\nvalidation = "gone.csv"', "which is no file"),
        ("[output]", '[output]\nkeep = "best"', "no examples are set aside to choose by"),
        ("[output]", "[output]\npatience = 3", "no examples are set aside to choose by"),
        ("[output]", "[output]\npatience = 0", "give at least 1 evaluation"),
        ("[output]", '[output]\nkeep = "first"', "one of 'best', 'last'"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    here: Path, old: str, new: str, message: str
) -> None:
    change(old, new)
    with pytest.raises(InputError) as caught:
        configuration.load("run.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- runs ---

VALIDATION = "".join(f"a {w} film,{n}\n" for w, n in (("fine", "good"), ("bad", "bad")))


@pytest.fixture
def judged(here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Measured]]:
    """A run of six rounds, whose evaluations on the two validation examples go up and down."""
    Path("validation.csv").write_text("text,label\n" + VALIDATION)
    Path("test.csv").write_text("text,label\nfine film,good\nbad film,bad\nfine,good\n")
    change('test = "test.csv"', 'test = "test.csv"\nvalidation = "validation.csv"')
    change("evaluate_every = 2", "evaluate_every = 1")
    change("rounds = 4", "rounds = 6")
    change("[mezo]\nlr = 1e-3\n", "")
    curve = [0.5, 0.6, 0.9, 0.7, 0.7, 0.6, 0.5, 0.4, 0.95]
    seen: dict[str, list[Measured]] = {"validation": [], "test": []}
    measure = Task.measure

    def measured(task: PromptClassification, model: Any, examples: Any) -> Measured:
        found = measure(task, model, examples)
        if len(examples) == 2:
            accuracy = curve[len(seen["validation"])]
            found = Measured(loss=found.loss, accuracy=accuracy, confusion=found.confusion)
        seen["validation" if len(examples) == 2 else "test"].append(found)
        return found

    monkeypatch.setattr(Task, "measure", measured)
    return seen


def metrics(folder: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


RUN = ["run", "run.toml", "--output", "out"]


@pytest.mark.slow
def test_the_best_rounds_weights_are_saved(
    judged: dict[str, list[Measured]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(RUN) == 0
    *rows, summary = metrics()
    assert [row["accuracy"] for row in rows] == [0.5, 0.6, 0.9, 0.7, 0.7, 0.6, 0.5]
    assert (summary["kept_round"], summary["kept_digest"]) == (2, rows[2]["digest"])
    assert summary["digest"] == rows[-1]["digest"] != rows[2]["digest"]
    assert (summary["validation_accuracy"], summary["validation_loss"]) == (0.9, rows[2]["loss"])
    # the test examples are looked at twice: before training, and with what is kept
    before, after = judged["test"]
    assert (summary["zero_shot_loss"], summary["loss"]) == (before.loss, after.loss)
    assert summary["confusion"]["rows"] == [list(row) for row in after.confusion or ()]
    assert summary["confusion"]["labels"] == ["good", "bad"]
    shown = capsys.readouterr().out
    assert "The model is that of round 2, the best on the validation examples" in shown
    assert "macro F1" in shown
    assert main(["verify", "out", "out/journal.fspz", "--round", "2"]) == 0
    assert main(["replay", "net", "out/journal.fspz", "--round", "2", "-o", "new", "--quiet"]) == 0
    for path in Path("new").iterdir():
        assert path.read_bytes() == Path("out/model", path.name).read_bytes()


@pytest.mark.slow
def test_the_last_rounds_weights_are_saved_if_asked_for(
    judged: dict[str, list[Measured]],
) -> None:
    change("[output]", '[output]\nkeep = "last"')
    assert main([*RUN, "--quiet"]) == 0
    assert metrics()[-1]["kept_round"] == 6
    assert main(["verify", "out", "out/journal.fspz"]) == 0


@pytest.mark.slow
def test_patience_ends_a_run_early_and_it_can_be_extended(
    judged: dict[str, list[Measured]], capsys: pytest.CaptureFixture[str]
) -> None:
    change("[output]", "[output]\npatience = 2")
    assert main(RUN) == 0
    *rows, summary = metrics()
    assert (len(rows), summary["rounds"], summary["kept_round"]) == (5, 4, 2)
    assert "stopped after round 4 of 6" in capsys.readouterr().out
    assert main(["run", "--resume", "out", "--rounds", "4"]) == 2
    assert "has 4 rounds already; give more" in capsys.readouterr().err
    # evaluations: round 4 is evaluated again, as it is not on disk; then 0.5, 0.4, 0.95
    judged["validation"].pop()
    assert main(["run", "--resume", "out", "--rounds", "8", "--quiet"]) == 0
    *rows, summary = metrics()
    assert [row["round"] for row in rows] == list(range(9))
    assert (summary["rounds"], summary["kept_round"]) == (8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_an_extended_run_is_one_of_more_rounds(
    here: Path, finished: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change("rounds = 4", "rounds = 7")
    assert main(["run", "run.toml", "--output", "whole", "--quiet"]) == 0
    change("rounds = 7", "rounds = 4")
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr("fedspzo.app.run_folder.RunFolder.append", stop_at(3))
        assert main([*RUN, "--quiet"]) == (0 if finished else 130)
    with monkeypatch.context() as patch:  # it is interrupted, and goes on to the new end
        patch.setattr("fedspzo.app.run_folder.RunFolder.append", stop_at(5))
        assert main(["run", "--resume", "out", "--rounds", "7", "--quiet"]) == 130
    assert main(["run", "--resume", "out", "--quiet"]) == 0
    for name in ("metrics.jsonl", "mezo.jsonl"):
        extended, whole = (
            [json.loads(line) for line in Path(folder, name).read_text().splitlines()]
            for folder in ("out", "whole")
        )
        assert [row["digest"] for row in extended if "digest" in row] == [
            row["digest"] for row in whole if "digest" in row
        ]
    assert metrics()[-1]["rounds"] == 7
    assert metrics()[-1]["loss"] == metrics("whole")[-1]["loss"]
    assert main(["verify", "out", "out/journal.fspz"]) == 0
    assert main(["journal", "show", "out/journal.fspz"]) == 0
    assert main(["journal", "compact", "out/journal.fspz", "-o", "short.fspz"]) == 0
    assert main(["verify", "out", "short.fspz"]) == 0
    capsys.readouterr()
    assert main(["run", "--resume", "out"]) == 0
    assert "is finished; --rounds N extends it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_keeps_its_best_round(tmp_path: Path) -> None:
    """Round 12 is worse than those before it, so that the best round is not the last."""
    config = Path(__file__).parents[1] / "examples" / "sentiment" / "config.toml"
    out = tmp_path / "out"
    assert main(["run", str(config), "--rounds", "12", "--quiet", "--output", str(out)]) == 0
    *rounds, summary = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    looked_at = {row["round"]: row["accuracy"] for row in rounds if row["accuracy"] is not None}
    assert summary["validation_accuracy"] == looked_at[summary["kept_round"]]
    assert summary["validation_accuracy"] == max(looked_at.values())
    assert summary["kept_round"] < 12
    assert summary["accuracy"] > summary["zero_shot_accuracy"] + 0.15

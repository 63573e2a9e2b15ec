"""A saved model's folder is all that it takes: to predict, to measure, and for pipelines."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import fuzz
from hypothesis import strategies as st
from odd_json import ODD, check_line, places, planted
from saved_toys import KINDS, run
from transformers import pipeline

from fedspzo.app.cli import main
from fedspzo.app.saved_model import open_saved
from fedspzo.app.saved_task import TASK_FILE, SavedTask
from fedspzo.errors import InputError

pytestmark = pytest.mark.slow

MEASURES = ("accuracy", "loss", "macro_f1", "classes", "confusion", "exact_match", "token_f1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of each kind, once: its folder and its summary."""
    done: dict[str, tuple[Path, dict[str, Any]]] = {}

    def one(kind: str) -> tuple[Path, dict[str, Any]]:
        if kind not in done:
            folder = tmp_path_factory.mktemp("saved")
            done[kind] = folder, run(folder, kind)
        return done[kind]

    return one


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command, and return its exit code and what it printed."""

    def command(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        out, error = capsys.readouterr()
        return code, out if code == 0 else error

    return command


def refused(answer: tuple[int, str], *parts: str) -> None:
    code, error = answer
    assert code == 2
    assert error.count("\n") == 1, error
    for part in parts:
        assert part in error


@pytest.mark.parametrize("kind", KINDS)
def test_eval_has_the_measures_of_the_run_to_the_bit(runs: Any, said: Any, kind: str) -> None:
    folder, summary = runs(kind)
    code, out = said("eval", folder / "out", folder / "test.jsonl", "--format", "json")
    assert code == 0
    found = json.loads(out)
    assert found["examples"] == 5
    expected = {key: summary[key] for key in MEASURES if key in summary}
    assert {key: found[key] for key in MEASURES if key in found} == expected
    assert found["digest"] == summary["kept_digest"]
    code, out = said("eval", folder / "out" / "model", folder / "test.jsonl")
    assert f"accuracy {summary['accuracy']:.1%}, loss {summary['loss']:.3f}, of 5 examples" in out
    if "macro_f1" in summary:
        assert f"macro F1 {summary['macro_f1']:.1%}" in out
    if "exact_match" in summary:
        assert f"Exact match of generated answers: {summary['exact_match']:.1%}." in out


def texts_of(folder: Path, field: str = "text") -> list[str]:
    return [json.loads(line)[field] for line in (folder / "test.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", [k for k in KINDS if "completion" not in k and k != "lm"])
def test_predictions_are_those_that_were_measured(runs: Any, said: Any, kind: str) -> None:
    folder, summary = runs(kind)
    code, out = said("predict", folder / "out", folder / "test.jsonl", "--format", "jsonl")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    true = [json.loads(line)["label"] for line in (folder / "test.jsonl").read_text().splitlines()]
    names = {"good": "POS", "bad": "NEG"} if kind.endswith("own head") else {}
    labels = summary["confusion"]["labels"]
    confusion = [[0] * len(labels) for _ in labels]
    loss = 0.0
    for row, own in zip(rows, true, strict=True):
        label = names.get(own, own)
        confusion[labels.index(label)][labels.index(row["label"])] += 1
        assert row["probability"] == max(row["probabilities"].values())
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        loss -= torch.tensor(row["probabilities"][label]).log().item() / len(true)
    assert confusion == summary["confusion"]["rows"]
    assert loss == pytest.approx(summary["loss"], abs=1e-5)


@pytest.mark.parametrize("kind", ["new head", "own head", "replaced head"])
def test_a_pipeline_opens_a_classifier_with_its_labels(runs: Any, said: Any, kind: str) -> None:
    folder, _ = runs(kind)
    texts = texts_of(folder)
    found = pipeline("text-classification", model=str(folder / "out" / "model"))(texts)
    _, out = said("predict", folder / "out", folder / "test.jsonl", "--format", "jsonl")
    for one, line in zip(found, out.splitlines(), strict=True):
        row = json.loads(line)
        assert one["label"] == row["label"]
        assert one["score"] == pytest.approx(row["probability"], abs=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "several", "completion", "lm"])
def test_a_pipeline_writes_with_a_causal_model(runs: Any, kind: str) -> None:
    folder, _ = runs(kind)
    generate = pipeline("text-generation", model=str(folder / "out" / "model"))
    text = generate("a fine film it was", max_new_tokens=2, do_sample=False)[0]["generated_text"]
    assert text.startswith("a fine film it was")


def test_a_prompts_logits_are_the_pipelines(runs: Any, said: Any, tmp_path: Path) -> None:
    folder, _ = runs("masked")
    fill = pipeline("fill-mask", model=str(folder / "out" / "model"), top_k=15)
    scores = {one["token_str"]: one["score"] for one in fill("a fine film it was [MASK]")}
    (tmp_path / "one.txt").write_text("a fine film\n")
    _, out = said("predict", folder / "out", tmp_path / "one.txt", "--format", "jsonl")
    share = scores["great"] / (scores["great"] + scores["awful"])
    assert json.loads(out)["probabilities"]["good"] == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("kind", ["completion", "lora completion"])
def test_answers_are_those_that_were_measured(runs: Any, said: Any, kind: str) -> None:
    from fedspzo.app.answer_scores import exact_match

    folder, summary = runs(kind)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    asked = [rows[i * 5 // 4] for i in range(4)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    code, out = said("predict", folder / "out", folder / "asked.jsonl", "--format", "jsonl")
    assert code == 0
    answers = [json.loads(line)["answer"] for line in out.splitlines()]
    scores = [exact_match(a, row["answer"]) for a, row in zip(answers, asked, strict=True)]
    assert sum(scores) / 4 == summary["exact_match"]
    code, out = said("predict", folder / "out", folder / "asked.jsonl", "--tokens", 1)
    assert all(len(line.split()) <= 1 for line in out.splitlines())
    refused(
        said("predict", folder / "out", folder / "asked.jsonl", "--tokens", 23),
        "an answer of 23 tokens leaves no room",
        "at most 22",
    )


def test_a_language_model_continues_texts(runs: Any, said: Any, tmp_path: Path) -> None:
    folder, _ = runs("lm")
    (tmp_path / "texts").write_text("a fine film\ndull\n")
    code, out = said("predict", folder / "out", tmp_path / "texts", "--tokens", 3)
    assert code == 0
    generate = pipeline("text-generation", model=str(folder / "out" / "model"))
    for line, text in zip(out.splitlines(), ("a fine film", "dull"), strict=True):
        whole = generate(text, max_new_tokens=3, do_sample=False)[0]["generated_text"]
        assert whole.replace(" ", "") == (text + line).replace(" ", "")
    refused(said("predict", folder / "out", tmp_path / "texts", "--tokens", 24), "at most 23")


# --- what predict reads and prints ---


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_stdin_and_every_form_of_output(
    runs: Any, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = runs("prompt")
    out = folder / "out"
    _, lines = said("predict", out, folder / "test.jsonl")
    labels = [line.split("\t")[0] for line in lines.splitlines()]
    assert all(0.5 <= float(line.split("\t")[1]) <= 1 for line in lines.splitlines())
    text = "".join(f"  {one}\r\n" for one in texts_of(folder)) + "\n"
    monkeypatch.setattr(sys, "stdin", Stdin(b"\xef\xbb\xbf" + text.encode()))
    assert said("predict", out) == (0, lines)
    monkeypatch.setattr(sys, "stdin", Stdin((folder / "test.jsonl").read_bytes()))
    assert said("predict", out, "--input", "jsonl") == (0, lines)
    renamed = "review,n\n" + "".join(f"{one},1\n" for one in texts_of(folder))
    monkeypatch.setattr(sys, "stdin", Stdin(renamed.encode()))
    assert said("predict", out, "--input", "csv", "--text", "review") == (0, lines)
    _, table = said("predict", out, folder / "test.jsonl", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["label"] for row in rows] == labels
    assert {f"{float(row['probability']):.4f}" for row in rows} == {
        line.split("\t")[1] for line in lines.splitlines()
    }


def test_what_cannot_be_predicted_is_one_line(runs: Any, said: Any, tmp_path: Path) -> None:
    folder, _ = runs("prompt")
    out, texts = folder / "out", tmp_path / "texts.txt"
    for content, part in (
        (b"", "holds no text; give one a line"),
        (b"\n \n", "holds no text"),
        (b"a\n\nb\n  \nc", "has no text in line 2, 4"),
        (b"a\n\xff", "line 2: byte 0xff is not UTF-8"),
    ):
        texts.write_bytes(content)
        refused(said("predict", out, texts), part)
    texts.write_text("a film")
    refused(said("predict", out, texts, "--tokens", 3), "tokens is 3, but the model chooses")
    refused(said("predict", out, texts, "--tokens", 0), "--tokens is 0")
    refused(
        said("predict", out, "--input", "xml"),
        "--input is 'xml'; give one of lines, jsonl, json, csv, tsv, parquet",
    )
    refused(said("predict", out, texts, "--base", "demo"), "holds a whole model; leave it out")
    refused(said("predict", folder / "net", texts), f"holds no {TASK_FILE}", "'fedspzo run'")
    refused(said("predict", out, tmp_path / "gone.txt"), "cannot be read")
    refused(said("eval", out, texts), "has no labels")
    (tmp_path / "odd.jsonl").write_text('{"text": "a film", "label": "meh"}\n')
    refused(said("eval", out, tmp_path / "odd.jsonl"), "'meh'", "known are 'good', 'bad'")


def test_eval_takes_other_fields_and_the_heads_own_labels(
    runs: Any, said: Any, tmp_path: Path
) -> None:
    folder, summary = runs("own head")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    names = {"good": "POS", "bad": "NEG"}
    with (tmp_path / "other.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"])
        writer.writerows([row["text"], names[row["label"]]] for row in rows)
    fields = ("--text", "review", "--label", "stars", "--format", "json")
    code, out = said("eval", folder / "out", tmp_path / "other.csv", *fields)
    assert code == 0
    assert json.loads(out)["confusion"] == summary["confusion"]


# --- the folder ---


def test_a_replayed_model_has_its_task_too(runs: Any, said: Any, tmp_path: Path) -> None:
    for kind in ("prompt", "replaced head", "completion", "lora replaced head"):
        folder, _ = runs(kind)
        journal = folder / "out" / "journal.fspz"
        rebuilt = tmp_path / kind
        code, _ = said("replay", folder / "net", journal, "-o", rebuilt, "--quiet")
        assert code == 0
        kept = (folder / "out" / "model" / TASK_FILE).read_bytes()
        assert (rebuilt / TASK_FILE).read_bytes() == kept
        answers = [
            said("predict", where, folder / "test.jsonl") for where in (folder / "out", rebuilt)
        ]
        assert answers[0] == answers[1]
        assert (
            said("verify", rebuilt, journal)[0] == said("verify", folder / "out", journal)[0] == 0
        )


def test_a_compacted_journal_goes_on_from_a_replaced_head(
    runs: Any, said: Any, tmp_path: Path
) -> None:
    folder, summary = runs("replaced head")
    journal, short = folder / "out" / "journal.fspz", tmp_path / "short.fspz"
    middle = tmp_path / "middle"
    assert said("journal", "compact", journal, "-o", short, "--after", 2)[0] == 0
    assert said("replay", folder / "net", journal, "--round", 2, "-o", middle, "--quiet")[0] == 0
    code, out = said("replay", middle, short, "-o", tmp_path / "end")
    assert code == 0
    assert summary["digest"] in out
    asked = [
        said("predict", where, folder / "test.jsonl")
        for where in (folder / "out", tmp_path / "end")
    ]
    assert asked[0] == asked[1]


def test_a_renamed_label_is_refused(runs: Any, said: Any, tmp_path: Path) -> None:
    folder, _ = runs("new head")
    copy = tmp_path / "model"
    shutil.copytree(folder / "out" / "model", copy)
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"good"', '"better"', 1))
    refused(said("predict", copy, folder / "test.jsonl"), "labels ['bad', 'better']", TASK_FILE)


def test_files_are_readable_by_others(runs: Any) -> None:
    folder, _ = runs("prompt")
    modes = {path.stat().st_mode & 0o777 for path in (folder / "out" / "model").iterdir()}
    assert modes == {(folder / "run.toml").stat().st_mode & 0o777}


@st.composite
def plantings(draw: st.DrawFn) -> tuple[str, int, Any]:
    kinds = st.sampled_from(["prompt", "new head", "completion", "lora prompt"])
    return draw(kinds), draw(st.integers(0, 2**16)), draw(st.sampled_from(ODD))


@fuzz(120, plantings())
def test_any_value_in_any_place_of_the_file(value: tuple[str, int, Any], scratch: Path) -> None:
    kind, number, new = value
    home = scratch / kind
    if not home.exists():
        home.mkdir()
        run(home, kind)
    folder = home / "out" / "model"
    path = folder / TASK_FILE
    before = path.read_text()
    document = json.loads(before)
    every = [(), *places(document)]
    path.write_text(json.dumps(planted(document, every[number % len(every)], new)))
    try:
        open_saved(folder, device="cpu")
    except InputError as error:
        check_line(error)
    finally:
        path.write_text(before)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format": 2}', '{"format": 1}', "\udcff"])
def test_a_file_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / TASK_FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        SavedTask.read(tmp_path)
    check_line(caught.value)

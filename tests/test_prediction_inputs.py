"""`predict` and `eval` read a file as the run read its own, and name their own options."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from saved_toys import write

from fedspzo.app.cli import main
from fedspzo.app.prediction_inputs import read_examples, read_texts
from fedspzo.app.recipe import Recipe
from fedspzo.app.saved_task import TASK_FILE, Fields, SavedTask
from fedspzo.app.sections import TaskConfig
from fedspzo.errors import InputError

PROMPT = TaskConfig(type="prompt", verbalizers={"good": "great", "bad": "awful"})
COMPLETION = TaskConfig(type="completion")
LATIN = "text,label\ncaf\xe9 film,good\ndull,bad\n"


def saved(task: TaskConfig = PROMPT, **data: Any) -> SavedTask:
    kind = "causal"
    recipe = Recipe(kind=kind, dtype="float32", seed=0)
    return SavedTask(task=task, data=Fields(max_length=24, **data), recipe=recipe)


def fault(function: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    return str(caught.value)


@pytest.mark.slow
def test_eval_reads_the_runs_own_test_file_as_the_run_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, "prompt", data='encoding = "latin-1"\non_bad_row = "skip"')
    rows = [
        {"text": "caf\xe9 film", "label": "good"},
        {"text": "dull", "label": ""},
        {"text": "bad film", "label": "bad"},
        {"text": "no label"},
    ]
    test = tmp_path / "test.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    test.write_text("\n".join(lines), encoding="latin-1")
    out = str(tmp_path / "out")
    assert main(["run", str(config), "--quiet", "--output", out]) in (0, 4)
    summary = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    kept = json.loads((tmp_path / "out" / "model" / TASK_FILE).read_text())["data"]
    assert (kept["encoding"], kept["on_bad_row"]) == ("latin-1", "skip")
    capsys.readouterr()
    assert main(["eval", out, str(test), "--format", "json"]) == 0
    printed, told = capsys.readouterr()
    found = json.loads(printed)
    assert found["examples"] == 2
    for key in ("accuracy", "loss", "confusion"):
        assert found[key] == summary[key]
    assert f"2 rows of '{test}' have no text or no label, and are skipped, as in the run" in told
    assert main(["predict", out, str(test)]) == 0  # an answer for each row: labels are not needed
    assert len(capsys.readouterr().out.splitlines()) == 4
    test.write_text(json.dumps({"text": "", "label": "good"}))
    assert main(["predict", out, str(test)]) == 2
    assert "line 1: 'text' is ''; give a non-empty text, or remove" in capsys.readouterr().err


def test_the_file_keeps_how_data_were_read(tmp_path: Path) -> None:
    one = saved(encoding="utf-16", on_bad_row="skip")
    one.write(tmp_path)
    assert SavedTask.read(tmp_path).data == one.data
    document = json.loads((tmp_path / TASK_FILE).read_text())
    for key in ("encoding", "on_bad_row"):  # a file of before they were kept
        del document["data"][key]
    (tmp_path / TASK_FILE).write_text(json.dumps(document))
    assert SavedTask.read(tmp_path).data == saved().data


def test_a_data_file_has_the_runs_encoding_unless_another_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    model = saved(encoding="latin-1")
    path.write_text(LATIN, encoding="latin-1")
    assert read_texts(path, model) == ["caf\xe9 film", "dull"]
    assert [one.text for one in read_examples(path, model).examples] == ["caf\xe9 film", "dull"]
    path.write_text(LATIN, encoding="utf-16")
    assert read_texts(path, saved(), encoding="utf-16") == ["caf\xe9 film", "dull"]
    found = read_examples(path, model, encoding="utf-16").examples
    assert [one.text for one in found] == ["caf\xe9 film", "dull"]


def test_utf_8_that_is_read_as_another_encoding_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(LATIN, encoding="utf-8")
    model = saved(encoding="latin-1")
    assert read_texts(path, model)[0] == "caf\xc3\xa9 film"
    assert f"'{path}' is read as latin-1, as in the run, but is UTF-8 too; if it is that, give" in (
        capsys.readouterr().err
    )
    assert read_texts(path, model, encoding="utf-8")[0] == "caf\xe9 film"
    read_texts(path, model, encoding="latin-1")
    read_texts(path, saved())
    path.write_text("text\ndull\n")
    read_texts(path, model)
    assert capsys.readouterr().err == ""


def test_lines_are_utf_8_unless_another_encoding_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal writes UTF-8, whatever the run's files were."""

    class Stdin:
        buffer = io.BytesIO("caf\xe9\n".encode())

    model = saved(encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", Stdin())
    assert read_texts(None, model) == ["caf\xe9"]
    path = tmp_path / "texts.txt"
    path.write_text("caf\xe9\n", encoding="latin-1")
    assert read_texts(path, model, encoding="latin-1") == ["caf\xe9"]
    assert fault(read_texts, path, model).endswith(
        "line 1: byte 0xe9 is not UTF-8; save the file as UTF-8, or say what it is as"
        " --encoding latin-1"
    )


@pytest.mark.parametrize(
    ("function", "task", "content", "expected"),
    [
        (read_texts, PROMPT, '{"txt": "a"}', "add it or name another one as --text"),
        (read_texts, COMPLETION, '{"txt": "a"}', "add it or name another one as --text"),
        (read_examples, PROMPT, '{"txt": "a"}', "add it or name another one as --text"),
        (read_examples, PROMPT, '{"text": "a"}', "add it or name another one as --label"),
        (read_examples, COMPLETION, '{"prompt": "a"}', "add it or name another one as --label"),
        (read_texts, PROMPT, '{"text": ""}', "give a non-empty text, or remove such rows"),
        (
            read_examples,
            PROMPT,
            '{"text": "a", "label": ""}',
            "give a non-empty text and a label, or remove such rows",
        ),
        (
            read_examples,
            COMPLETION,
            '{"prompt": "a", "answer": ""}',
            "give a prompt and an answer, or remove such rows",
        ),
    ],
)
def test_a_remedy_is_an_option_of_the_command(
    tmp_path: Path, function: Any, task: TaskConfig, content: str, expected: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    message = fault(function, path, saved(task))
    assert message.endswith(expected)
    assert "[data]" not in message


def test_the_remedy_for_an_encoding_is_an_option_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(LATIN, encoding="latin-1")
    message = fault(read_examples, path, saved())
    assert message.endswith("or say what it is as --encoding latin-1")
    path.write_bytes(b"text\n\x81\n")
    message = fault(read_texts, path, saved(encoding="windows-1252"))
    assert message.endswith("is not WINDOWS-1252; correct --encoding")
    path.write_text(LATIN, encoding="utf-16")
    assert "is UTF-16 text; set --encoding utf-16, or save it" in fault(read_texts, path, saved())

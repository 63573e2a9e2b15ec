"""What goes wrong outside of the program is one line and an exit code, never a traceback."""

from __future__ import annotations

import builtins
import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fuzzing import fuzz
from hypothesis import strategies as st
from odd_json import ODD, check_line, odd, places, planted, text
from tiny_run import write_run

from fedspzo import __main__ as command
from fedspzo.app import config as configuration
from fedspzo.app import models
from fedspzo.app.cli import main
from fedspzo.app.data import read_splits
from fedspzo.app.experiment import Experiment
from fedspzo.app.run_folder import RunFolder
from fedspzo.app.weight_files import check_weight_files
from fedspzo.errors import InputError

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_run(tmp_path)
    return tmp_path


def begin(folder: Path) -> None:
    """All that a run does before its first round, and one evaluation."""
    config = configuration.load(folder / "run.toml")
    splits = read_splits(config.data, config.task)
    model, task, recipe = models.load(config, splits)
    out = RunFolder(folder / "out")
    experiment = Experiment(config, splits, model, task, recipe, out, {}, quiet=True)
    experiment.cut(model, config.optimizer)
    task.measure(model, experiment.test)


# --- the model's files ---


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(path: Path, *names: str) -> None:
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in names})
    )


def header(path: Path, content: Any) -> None:
    """Replace a safetensors file by one with this header and one byte of data."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0")


def huge(path: Path) -> None:
    """A sparse file of a terabyte that holds one tensor of that size."""
    size = 2**40
    one = {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    header(path, one)
    os.truncate(path, path.stat().st_size - 1 + size)


BROKEN: dict[str, tuple[Any, str]] = {
    "config.json is no object": (lambda net: (net / "config.json").write_text("[1]"), ""),
    "config.json is no JSON": (lambda net: (net / "config.json").write_text("{"), ""),
    "config.json without sizes": (
        lambda net: without(net / "config.json", "hidden_size", "num_hidden_layers", "vocab_size"),
        "has hidden_size = 4096, but no weight has a side of that length",
    ),
    "config.json without a type": (
        lambda net: without(net / "config.json", "model_type", "architectures"),
        "",
    ),
    "absurdly many layers": (
        lambda net: edited(net / "config.json", num_hidden_layers=10**9),
        "num_hidden_layers = 1000000000, but there are",
    ),
    "an absurd vocabulary": (lambda net: edited(net / "config.json", vocab_size=10**12), ""),
    "a position too few": (
        lambda net: edited(net / "config.json", max_position_embeddings=1),
        "max_position_embeddings in config.json is 1",
    ),
    "tokenizer.json is no JSON": (lambda net: (net / "tokenizer.json").write_text("{]"), ""),
    "tokenizer.json is empty": (lambda net: (net / "tokenizer.json").write_text(""), ""),
    "tokenizer.json without a model": (lambda net: without(net / "tokenizer.json", "model"), ""),
    "model_max_length is a text": (
        lambda net: edited(net / "tokenizer_config.json", model_max_length="many"),
        "model_max_length in tokenizer_config.json is 'many'",
    ),
    "an index that points outside": (
        lambda net: (
            (net / "model.safetensors").rename(net.parent / "outside.safetensors"),
            (net / "x.safetensors").write_bytes(b""),
            (net / INDEX).write_text(json.dumps({"weight_map": {"w": "../outside.safetensors"}})),
        ),
        "names '../outside.safetensors', which is not in its folder",
    ),
    "an index without names": (
        lambda net: (
            (net / "model.safetensors").rename(net / "part.safetensors"),
            (net / INDEX).write_text('{"weight_map": [1]}'),
        ),
        "has no weight_map of file names",
    ),
    "weights of absurd size": (
        lambda net: huge(net / "model.safetensors"),
        "GB of memory; name a smaller model",
    ),
    "weights of more than a number can say": (
        lambda net: header(net / "model.safetensors", {"w": {"shape": [2**62] * 20}}),
        "GB of memory; name a smaller model",
    ),
    "weights that are cut off": (
        lambda net: os.truncate(net / "model.safetensors", 5000),
        "",
    ),
    "weights of a few bytes": (
        lambda net: (net / "model.safetensors").write_bytes(b"PK"),
        "is no safetensors file (too short)",
    ),
    "weights with an endless header": (
        lambda net: (net / "model.safetensors").write_bytes(b"\xff" * 20),
        "is no safetensors file (a header of",
    ),
    "weights with a header of a list": (
        lambda net: header(net / "model.safetensors", [1]),
        "is no safetensors file",
    ),
    "weights with a shape of texts": (
        lambda net: header(net / "model.safetensors", {"w": {"shape": ["a"]}}),
        "is no safetensors file (a shape of ['a'])",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_base_is_one_line_within_a_second(
    here: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks, message = BROKEN[fault]
    breaks(here / "net")
    arguments = ["run", "run.toml", "--quiet", "--output", "out"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    begun = time.process_time()  # of a second call: the first one imports transformers
    main(arguments)
    assert time.process_time() - begun < 3
    assert capsys.readouterr().err == error
    assert error.count("\n") == 1, error
    assert error.startswith("fedspzo: error: ")
    assert message in error
    assert not Path("out").exists()


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@st.composite
def planted_values(draw: st.DrawFn) -> tuple[str, int, Any]:
    return draw(st.sampled_from(FILES)), draw(st.integers(0, 2**16)), draw(st.sampled_from(ODD))


@fuzz(150, planted_values())
def test_any_value_in_any_place_of_a_models_files(
    value: tuple[str, int, Any], scratch: Path
) -> None:
    name, number, new = value
    scratch = scratch / "a run"
    if not scratch.exists():
        torch.set_num_threads(1)
        scratch.mkdir()
        write_run(scratch)
    path = scratch / "net" / name
    before = path.read_text()
    document = json.loads(before)
    every = [(), *places(document)]
    path.write_text(json.dumps(planted(document, every[number % len(every)], new)))
    try:
        begin(scratch)
    except InputError as error:
        check_line(error)
    finally:
        path.write_text(before)


headers = (
    st.fixed_dictionaries(
        {}, optional={"w": odd, "__metadata__": odd, "v": st.fixed_dictionaries({"shape": odd})}
    )
    | odd
)


@fuzz(300, st.tuples(st.booleans(), st.binary(max_size=30) | headers.map(text)))
def test_weight_files_of_anything(value: tuple[bool, bytes], scratch: Path) -> None:
    index, content = value
    folder = scratch / "weights"
    folder.mkdir(exist_ok=True)
    config = SimpleNamespace(num_hidden_layers=2)
    for path in folder.iterdir():
        path.unlink()
    if index:
        (folder / INDEX).write_bytes(content)
    else:
        header(folder / "model.safetensors", content)
    try:
        check_weight_files(folder, config, 4)
    except InputError as error:
        check_line(error)


# --- the command line ---

LONG = "x" * 5000
ARGUMENTS = [
    (["run", ""], "is no path (it is empty)"),
    (["run", "run.toml", "--output", ""], "--output: '' is no path (it is empty)"),
    (["run", "run.toml", "--output", LONG], "is no path (File name too long)"),
    (["run", LONG], "is no path (File name too long)"),
    (["run", "--resume", LONG], "is no path (File name too long)"),
    (["run", "--resume", " "], "is no path (it is empty)"),
    (["demo", "--output", ""], "is no path (it is empty)"),
    (["replay", "", "x", "-o", "y"], "is no path (it is empty)"),
    (["replay", LONG, "x", "-o", "y"], "is no path (File name too long)"),
    (["replay", "net", LONG, "-o", "y"], "is no path (File name too long)"),
    (["replay", "net", "x", "-o", ""], "is no path (it is empty)"),
    (["verify", LONG, "x"], "is no path (File name too long)"),
    (["journal", "show", LONG], "is no path (File name too long)"),
    (["journal", "compact", "x", "-o", LONG], "is no path (File name too long)"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=lambda x: str(x)[:40])
def test_a_name_that_can_be_none_is_one_line(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert len(error) < 1000
    assert sorted(here.iterdir()) == before


def fedspzo(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "fedspzo", *arguments]
    if shell:
        program = ["bash", "-c", f'"$0" "$@" {shell}', *program]
    return subprocess.run(
        program, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_full_disk_under_stdout_is_one_line() -> None:
    done = fedspzo("info", shell="> /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "fedspzo: error: the output cannot be read or written (No space left on device)\n"
    )
    assert fedspzo("info", shell="> /dev/full 2> /dev/full").returncode == 2


@pytest.mark.slow
def test_a_closed_pipe_under_stdout_is_no_word() -> None:
    done = fedspzo("info", shell="| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_an_ascii_terminal_shows_escapes(here: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = fedspzo("run", "größe.toml", **ascii_only)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.fullmatch(r"fedspzo: error: gr[\\a-z0-9]+e\.toml: no such.*\n", done.stderr)
    text = Path("run.toml").read_text().replace("good = ", '"g\u00fct" = ')
    Path("run.toml").write_text(text.replace("[mezo]\nlr = 1e-3\n", ""))
    for name in ("train.jsonl", "test.csv"):
        Path(name).write_text(Path(name).read_text().replace("good", "g\u00fct"))
    done = fedspzo("run", "run.toml", "--output", "out", **ascii_only)
    assert done.returncode in (0, 4), done.stderr
    assert "g\\xfct" in done.stdout


def test_an_interrupt_while_the_program_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def interrupted(name: str, *rest: Any) -> Any:
        if name == "fedspzo.app.cli":
            raise KeyboardInterrupt
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert command.main() == 130
    assert capsys.readouterr().err == "fedspzo: interrupted\n"


def test_the_command_line_is_there_before_torch() -> None:
    code = "import sys, fedspzo.__main__, fedspzo.app.cli; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout == "False\n"

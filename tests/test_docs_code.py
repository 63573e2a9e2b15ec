"""Every block of code in README, docs and CONTRIBUTING is run, or is listed here with the reason.

A block is indented (commands alone) or fenced with its language. A page's blocks run one after
another in a folder of their own, with the small model and the data of docs_names.py, and so many
rounds that it takes seconds. One test a page, not one a block: pytest-xdist would spread them.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import docs_names
import pytest
import tiny_run
import torch.distributed as dist
from sybil import Document, Example, Lexeme, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from fedspzo.app import config
from fedspzo.app.cli import main
from fedspzo.app.commands import run
from fedspzo.estimators.base import ESTIMATORS

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
ROUNDS = 24
"""Of the demo and of the run from my.toml: the docs name their 20th round."""

# Why a command is not run here. What is checked in its place is in the function `check`.
NOT_RUN = {
    r"make \w+": "builds, downloads or tests for minutes; make knows the target",
    r"pip install .*": "installs from a package index; its extras and folders are ours",
    r"python examples/\w+/train.py.*": "tests/test_examples.py runs it; the script is there",
    r"torchrun .*": "tests/test_examples.py runs it; the script is there",
    r"python -m fedspzo.demo.corpus .*": "tests/test_demo_model.py runs it; its options are known",
    r"python -m fedspzo.demo.build": "takes four minutes; its module is there",
    r"(flower-super\w+|flwr run|export FLWR_\w+)\b.*": "tests/test_flower.py does it",
}
# What a reader puts in the place of a word in capitals.
PLACES = {
    "CONFIG.toml": "run.toml",
    "--resume DIR": "--resume runs/my",
    "DIR...": "runs/my",
    "--rounds N": f"--rounds {ROUNDS + 2}",
    "--after N": f"--after {ROUNDS - 2}",
    "BASE": "net",
    "JOURNAL": "runs/my/journal.fspz",
    "FOLDER": "runs/my/model",
    "predict DIR": "predict runs/my",
    "eval DIR": "eval runs/my",
    "FILE": "test.jsonl",
}
# Languages of blocks that show what a program prints, a formula or a map.
SHOWN = ("text", "console")


def indented(document: Document) -> Iterator[Region]:
    """Find the indented blocks of a page. They have commands."""
    blocks = re.compile(r"^```.*?^```$|(?<=\n\n)((?: {4}[^\n]*\n)+)", re.M | re.S)
    for found in blocks.finditer(document.text):
        if found[1]:
            yield Region(found.start(1), found.end(1), textwrap.dedent(found[1]), commands)


def python(example: Example) -> None:
    """Run a block of Python, for two rounds where it says how many."""
    block = example.parsed
    shorter = re.sub(r"\b(rounds=|pool=|range\()\d+", r"\g<1>2", block)
    example.parsed = Lexeme(shorter, block.offset, block.line_offset)
    example.namespace |= docs_names.names_for(shorter, example.namespace)
    PythonEvaluator()(example)


def toml(example: Example) -> None:
    """Read a config as `fedspzo run` does. To a part of one the rest is added."""
    text = str(example.parsed)
    if "model" not in tomllib.loads(text):
        text = f"{Path('my.toml').read_text()}\n{text}"
    Path("read.toml").write_text(text)
    config.load("read.toml")


def commands(example: Example) -> None:
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        command = " ".join(words)
        reasons = [pattern for pattern in NOT_RUN if re.fullmatch(pattern, command)]
        where = f"{example.path}, line {example.line}: {command}"
        if reasons:
            check(words, where)
            continue
        assert words[0] == "fedspzo", f"{where}\nneither runs here nor stands in NOT_RUN"
        for variant in {re.sub(r" \[.*?\]", "", command), re.sub(r"[\[\]]", "", command)}:
            arguments = shlex.split(filled(variant))[1:]
            assert main(arguments) == 0, f"{where}\nran as {' '.join(arguments)}"


def filled(command: str) -> str:
    """Put a file or a number in the place of each word in capitals.

    A round is the last one, which is what runs/my/model holds.
    """
    summary = Path("runs/my/metrics.jsonl")
    if "--round N" in command:
        last = json.loads(summary.read_text().splitlines()[-1])["rounds"]
        command = command.replace("--round N", f"--round {last}")
    for word, place in PLACES.items():
        command = re.sub(rf"(?<!\S){word}(?!\S)", place, command)
    taken = sum(1 for _ in Path().iterdir())
    return re.sub(r"-o (DIR|NEW)\b", f"-o new{taken}", command)


def check(words: list[str], where: str) -> None:
    """Check a command that is not run as far as that goes."""
    program, *rest = words
    if program == "make":
        done = subprocess.run(
            ("make", "-n", *rest), cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{where}\n{done.stderr}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for name in re.findall(r"\[(\w+)\]", " ".join(rest)):
            assert name in extras["optional-dependencies"], where
    elif program.startswith(("flower-", "flwr", "export")):
        source = (ROOT / "tests/flower_deployment.py").read_text()
        names = [word.split("=")[0] for word in rest if re.match(r"--|FLWR_", word)]
        shown = [] if program != "flwr" else ["--stream"]  # it prints what the tests read as files
        assert [name for name in names if f'"{name}"' not in source] == shown, where
    elif rest[0] == "-m":
        assert find_spec(rest[1]) is not None, where
        source = Path(str(find_spec(rest[1]).origin)).read_text()
        for option in (word for word in rest[2:] if word.startswith("--")):
            assert f'"{option}"' in source, where
    else:
        scripts = [word for word in rest if word.endswith(".py")]
        assert scripts, where
        assert [s for s in scripts if not (ROOT / s).is_file()] == [], where


PARSERS: list[Callable[[Document], Any]] = [
    indented,
    CodeBlockParser("python", python),
    CodeBlockParser("toml", toml),
    CodeBlockParser("sh", commands),
]


def small(folder: Path, rounds: int) -> None:
    """Make a config's run one of seconds: few rounds, clients and rows, and a rate given."""
    path = folder / "config.toml"
    text = re.sub(r"\[(mezo|output)\]\n.*\n", "", path.read_text()).replace("dirichlet", "iid")
    smaller = {"rounds": rounds, "clients": 2, "batch_size": 2, "perturbations": [1, 1]}
    for key, value in {**smaller, "lr": 1e-6, "metric_rows": 2}.items():
        text = re.sub(rf"^{key} = .*", f"{key} = {value}", text, flags=re.M)
    path.write_text(f"{text}\n[output]\nevaluate_every = {rounds}\n")
    for data in (*folder.glob("**/*.jsonl"), *folder.glob("*.csv")):
        lines = data.read_text().splitlines(keepends=True)
        step = max(1, len(lines) // 20)
        data.write_text("".join(lines[:1] + lines[1::step]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the docs' commands name, and in it the process."""
    monkeypatch.chdir(tmp_path)
    tiny_run.write_run(tmp_path)
    text = (tmp_path / "run.toml").read_text().replace("[mezo]\nlr = 1e-3\n", "")
    (tmp_path / "run.toml").write_text(text)
    text = text.replace("rounds = 4", f"rounds = {ROUNDS}")
    (tmp_path / "my.toml").write_text(text.replace("evaluate_every = 2", "evaluate_every = 12"))
    (tmp_path / "test.jsonl").write_bytes((tmp_path / "train.jsonl").read_bytes())
    (tmp_path / "texts.txt").write_text("a fine film\na dull film\n")
    for name in ("sentiment", "own_labels", "answers", "lora"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / "examples" / name)
        small(tmp_path / "examples" / name, rounds=12)
    demo = tmp_path / "packaged/demo"
    shutil.copytree(run.DEMO_CONFIG.parent / "data", demo / "data")
    shutil.copy(run.DEMO_CONFIG, demo)
    small(demo, ROUNDS)
    monkeypatch.setattr(run, "DEMO_CONFIG", demo / "config.toml")
    return tmp_path


def run_page(page: Path, folder: Path) -> None:
    """Run a page's blocks."""
    document = Document.parse(str(page), *PARSERS)
    examples = list(document.examples())
    texts = [str(example.parsed) for example in examples]
    if "```python" in document.text:
        document.namespace |= docs_names.names(folder)
    for name, command in (("runs/my", "run my.toml"), ("runs/demo", "demo")):
        needs = [text for text in texts if name in text]
        if needs and not any(f"fedspzo {command}" in text for text in texts):
            assert main([*command.split(), "--quiet"]) == 0
    if "group.WORLD" in document.text:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for example in examples:
            example.evaluate()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.fixture
def registers() -> Iterator[None]:
    """What a block registers is forgotten after the test."""
    before = dict(ESTIMATORS)
    yield
    ESTIMATORS.clear()
    ESTIMATORS.update(before)


WITH_CODE = [page for page in PAGES if re.search(r"^(```[a-z]| {4}\w)", page.read_text(), re.M)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "registers")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, folder: Path) -> None:
    run_page(page, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_its_language(page: Path) -> None:
    """What has no known language would not be run, and nobody would notice."""
    opened = re.findall(r"^ *```([^\n`]*)$", page.read_text(), re.M)[::2]
    known = ("python", "toml", "sh", *SHOWN)
    assert [language for language in opened if language not in known] == []


def test_no_reason_is_left_over() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    lines = [" ".join(line.split("#")[0].split()) for line in text.splitlines()]
    unused = [p for p in NOT_RUN if not any(re.fullmatch(p, line) for line in lines)]
    assert unused == []

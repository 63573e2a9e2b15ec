"""Nothing that a sender or a model brings is run as code."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import write_run

from fedspzo.app.cli import main
from fedspzo.app.run_folder import JOURNAL
from fedspzo.federated import Plan

PACKAGES = [Path(__file__).parents[1] / name for name in ("python/fedspzo", "fedspzo_kernels")]

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}

UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}

UNSAFE_LOADS = {"torch", "np", "numpy", "pickle", "pd"}


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Whatever in a module could run code that comes as data."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if n.name.split(".")[0] in UNSAFE_MODULES)
            case ast.ImportFrom(module=str(module)):
                if module.split(".")[0] in UNSAFE_MODULES:
                    yield module
            case ast.Call(func=ast.Name(id=name)) if name in UNSAFE_NAMES:
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="load")):
                if owner in UNSAFE_LOADS:
                    yield f"{owner}.load"
            case ast.Call(func=ast.Attribute(attr="from_pretrained"), keywords=keywords):
                given = {k.arg: ast.unparse(k.value) for k in keywords}
                if given.get("trust_remote_code") != "False" and given.get(None) != "options":
                    yield "from_pretrained without trust_remote_code=False"
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=value)) if value:
                yield "trust_remote_code"


def test_nothing_in_the_package_could_run_data_as_code() -> None:
    files = [file for package in PACKAGES for file in package.rglob("*.py")]
    assert len(files) > 50
    found = {str(f): list(unsafe(ast.parse(f.read_text(encoding="utf-8")))) for f in files}
    assert {f: names for f, names in found.items() if names} == {}
    options = (PACKAGES[0] / "app" / "pretrained.py").read_text()
    assert '"trust_remote_code": False' in options
    assert '"use_safetensors": True' in options


def test_the_search_for_unsafe_code_finds_it() -> None:
    lines = [
        "import pickle",
        "from yaml import load",
        "eval('1')",
        "torch.load('x')",
        "AutoModel.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ]
    assert all(list(unsafe(ast.parse(line))) for line in lines)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)

    return tmp_path


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(
    where: str,
    tiny: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    file, mark = tiny / "net" / where, tiny / "mark"
    (tiny / "net" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    settings = json.loads(file.read_text())
    if where == "config.json":
        names = ("AutoConfig", "AutoModelForCausalLM")
        settings |= {"model_type": "evil", "auto_map": dict.fromkeys(names, "evil.Evil")}
    else:
        settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    file.write_text(json.dumps(settings))
    assert main(["run", "run.toml", "--quiet"]) == 2
    assert not mark.exists()
    assert not asked  # transformers would run the code of whoever answers y
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pickle_under_any_name_stays_one(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tiny / "mark"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists()  # it works
    mark.unlink()
    for name in ("train.jsonl", "test.csv", "run.toml", "net/model.safetensors"):
        whole = (tiny / name).read_bytes()
        (tiny / name).write_bytes(bomb)
        assert main(["run", "run.toml", "--quiet"]) == 2
        (tiny / name).write_bytes(whole)
        assert capsys.readouterr().err.count("\n") == 1
    (tiny / "net" / "pytorch_model.bin").write_bytes(bomb)
    (tiny / "net" / "model.safetensors").rename(tiny / "elsewhere.safetensors")
    assert main(["run", "run.toml", "--quiet"]) == 2
    (tiny / JOURNAL).write_bytes(bomb)
    assert main(["replay", "net", JOURNAL, "-o", "out", "--quiet"]) == 2
    with pytest.raises(ValueError, match="fedspzo"):
        Plan.decode(bomb)
    assert not mark.exists()

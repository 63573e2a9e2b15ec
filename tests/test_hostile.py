"""Input from somebody who means harm: no file but those named is touched, and no code is run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from fuzzing import damaged, fuzz, limited
from safetensors.torch import save, save_file
from test_fuzz import BODIES, HEADER, MAGIC, journal, odd, places, planted, text
from tiny_run import write_run

from fedspzo.app import models, replay, weights
from fedspzo.app import show as journal_view
from fedspzo.app.cli import main
from fedspzo.app.run_folder import JOURNAL
from fedspzo.errors import InputError
from fedspzo.federated import FederationConfig, OptimizerConfig, Plan, Report, run
from fedspzo.federated.journal.merged_rounds import MergedRounds
from fedspzo.federated.journal.reader import DecodedJournal
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.framing import PLAN, REPORT, frame
from fedspzo.journal.header import Header
from fedspzo.journal.reader import JournalError, JournalReader
from fedspzo.journal.records import Record

PACKAGES = [Path(__file__).parents[1] / name for name in ("python/fedspzo", "fedspzo_kernels")]


# No file but those named


_watching: list[list[tuple[str, bool]]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        mode, flags = arguments[1], arguments[2] or 0
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) or any(c in str(mode) for c in "wax+")
        _watching[-1].append((os.path.abspath(os.fsdecode(arguments[0])), writes))
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link"):
        _watching[-1].append((os.path.abspath(os.fsdecode(arguments[0])), True))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
        _watching[-1].append((event, True))


sys.addaudithook(_note)  # for good: hooks cannot be taken off


@contextmanager
def files_touched() -> Iterator[list[tuple[str, bool]]]:
    """Collects (path, whether for writing) of all that Python opens, makes, removes or starts."""
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with files_touched() as touched:
        (tmp_path / "a").read_text()
        (tmp_path / "b").write_text("x")
        (tmp_path / "c").mkdir()
    assert touched == [(str(tmp_path / n), n != "a") for n in "abc"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's base weights and its journal."""
    folder = tmp_path_factory.mktemp("hostile")
    blocks = toy()
    named = {name: p.detach().clone() for name, p in blocks.model.named_parameters()}
    save_file(named, folder / "base.safetensors")
    with RunJournal(folder / JOURNAL, source="toy") as kept:
        run(
            blocks,
            ToyTask(),
            toy_data([9, 5]),
            FederationConfig(clients=2, rounds=2),
            OptimizerConfig(lr=0.05, perturbations=(1, 2)),
            journal=kept,
        )
    return folder


def test_a_message_opens_nothing() -> None:
    with files_touched() as touched:
        for kind, reader in ((PLAN, Plan), (REPORT, Report)):
            for body in (b"../../etc/passwd" * 9, b"/etc/passwd\0" * 12, bytes(200)):
                with pytest.raises(ValueError, match=r"body|is|shape"):
                    reader.decode(frame(kind, body))
    assert touched == []


HOSTILE = ["../../escaped", "/etc/passwd", "/tmp/escaped", "..", "a/../../b", "x\0y"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_a_journal_lead_nowhere(name: str, scratch: Path, tmp_path: Path) -> None:
    # Every text in the header, one after another and all at once.
    shutil.copy(scratch / JOURNAL, tmp_path / "whole.fspz")
    reader = JournalReader(tmp_path / "whole.fspz")
    bodies = [(entry.kind, entry.body) for entry in reader]
    texts = [path for path in places(reader.header) if isinstance(at(reader.header, path), str)]
    headers = [planted(reader.header, path, name) for path in texts]
    headers.append(planted(planted(reader.header, ("source",), name), ("model",), {"name": name}))
    base, path, output = scratch / "base.safetensors", tmp_path / JOURNAL, tmp_path / "out"
    allowed = {str(base), str(path)}
    for header in headers:
        path.write_bytes(journal(text(header), bodies))
        with files_touched() as touched:
            try:
                list(journal_view.lines(path))
                replay.save(replay.replay(str(base), path), output)
            except InputError:
                pass
        for file, _ in touched:
            inside = file.startswith((str(output), str(tmp_path / ".out")))
            library = "site-packages" in file or "/lib/python" in file
            assert file in allowed or inside or library or file == str(tmp_path), file
        assert {p.name for p in tmp_path.iterdir()} <= {JOURNAL, "whole.fspz", "out"}
        shutil.rmtree(output, ignore_errors=True)


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../base.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": 1}},
        {"weight_map": ["a"]},
        {"weight_map": None},
        {},
        [],
        None,
    ],
    ids=str,
)
def test_an_index_of_weights_stays_in_its_folder(index: Any, scratch: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    shutil.copy(scratch / "base.safetensors", tmp_path)
    (folder / weights.INDEX).write_text(json.dumps(index))
    with files_touched() as touched, pytest.raises(InputError, match="holds no weights"):
        replay.replay(str(folder), scratch / JOURNAL)
    assert {file for file, _ in touched} <= {
        str(scratch / JOURNAL),
        str(folder / weights.INDEX),
    }


WEIGHTS = {"a": torch.ones(2, 3), "b": torch.zeros(2, 3), "c": torch.ones(2, 3)}


@fuzz(300, damaged(save(WEIGHTS)))
def test_damaged_weights_are_refused_or_read(content: bytes, scratch: Path) -> None:
    path = scratch / "some.safetensors"
    path.write_bytes(content)
    try:
        found = weights.load(str(path), Header.from_json(HEADER))
    except InputError:
        return
    assert set(found.named) == {"a", "b", "c"}


@fuzz(300, odd)
def test_an_index_of_any_json_is_refused(index: Any, scratch: Path) -> None:
    folder = scratch / "folder"
    folder.mkdir(exist_ok=True)
    (folder / weights.INDEX).write_bytes(text({"weight_map": index}))
    with pytest.raises(InputError):
        weights.load(str(folder), Header.from_json({**HEADER, "model": None}))


RECIPES = [
    *({"dtype": value} for value in (None, "load", "int8", 1, [])),
    *({"kind": value} for value in (None, "../x", {}, "seq2seq")),
    *({"labels": value} for value in (None, 5, [1], ["\ud800"], [[]])),
    *({"seed": value} for value in (None, -1, 10**30, "0", 0.5)),
    {"more": 1},
]


@pytest.mark.parametrize("changes", RECIPES, ids=str)
def test_a_recipe_of_anything_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    assert models.Recipe  # imported: what is opened below is not
    (tmp_path / "net").mkdir()
    header = Header.from_json({**HEADER, "model": {**HEADER["model"], **changes}})
    with files_touched() as touched, pytest.raises(InputError, match="how its model is loaded"):
        weights.load(str(tmp_path / "net"), header)
    assert touched == []


# No length is believed


def huge() -> Iterator[tuple[str, Any, bytes]]:
    many = struct.pack("<I", 2**32 - 1)
    plan_head = bytes(16) + bytes(16) + struct.pack("<?HIBBBBBBdB", True, 1, 1, *[0] * 6, 1.0, 2)
    blocks = struct.pack("<HdHd", 1, 1.0, 2, 1.0)
    yield "updates of a plan", Plan.decode, frame(PLAN, plan_head + blocks + many)
    entries = struct.pack("<IIH", 1, 0, 2**16 - 1)
    yield "entries of an update", Plan.decode, frame(PLAN, plan_head + blocks + entries)
    scalars = struct.pack("<HH", 2**16 - 1, 2**16 - 1) + b"\xff" * 8192
    report = struct.pack("<II16sIff", 1, 1, bytes(16), 1, 0.0, 0.0)
    yield "steps of a report", Report.decode, frame(REPORT, report + scalars)
    yield "body of a message", Report.decode, b"FSPZ\1\2" + many + bytes(60)
    head = struct.pack("<IBHQ16s", 0, 0, 2**16 - 1, 0, bytes(16))
    yield "terms of a record", Record.decode, head + many
    yield "blocks of a record", Record.decode, head
    merged = partial(MergedRounds.decode, local_steps=2**16 - 1, directions=2**16 - 1)
    yield "rounds of a record", merged, bytes(4) + many + bytes(16)
    yield "entries of a round", merged, struct.pack("<II16sH", 0, 1, bytes(16), 2**16 - 1)
    yield "steps of a round", merged, struct.pack("<II16sHI", 0, 1, bytes(16), 1, 0) + scalars[4:]


@pytest.mark.parametrize(
    ("decode", "data"), [(d, b) for _, d, b in huge()], ids=[name for name, _, _ in huge()]
)
def test_a_length_of_gigabytes_takes_no_memory(decode: Any, data: bytes) -> None:
    tracemalloc.start()
    try:
        with limited(), pytest.raises(ValueError, match=r"byte|bytes|mask|steps"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_journals_length_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    whole = journal(text(HEADER), BODIES)
    for place in (12, len(journal(text(HEADER), []))):  # the header's length, the first record's
        path.write_bytes(whole[:place] + b"\xff" * 4 + whole[place + 4 :])
        tracemalloc.start()
        try:
            with limited(), pytest.raises(JournalError, match="length or kind"):
                list(DecodedJournal(path).records())
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
    # with a checksum that vouches for the length it is a record that was torn
    start = MAGIC + (3).to_bytes(4, "little")
    head = b"\xff" * 4 + b"\x01"
    check = zlib.crc32(head, zlib.crc32(start)).to_bytes(4, "little")
    path.write_bytes(start + head + check + bytes(100))
    tracemalloc.start()
    try:
        with limited(), pytest.raises(JournalError, match="ends inside its header"):
            DecodedJournal(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# No code


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
    options = (PACKAGES[0] / "app" / "models.py").read_text()
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

"""Names in journals, weights and messages lead to no file but those that the user named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from federated_toys import ToyTask, toy, toy_data
from files_touched import files_touched
from fuzz_journals import HEADER, journal
from fuzzing import damaged, fuzz
from odd_json import odd, places, planted, text
from safetensors.torch import save, save_file

from fedspzo.app import pretrained, replay, weights
from fedspzo.app import show as journal_view
from fedspzo.app.run_folder import JOURNAL
from fedspzo.errors import InputError
from fedspzo.federated import FederationConfig, OptimizerConfig, Plan, Report, run
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.framing import PLAN, REPORT, frame
from fedspzo.journal.header import Header
from fedspzo.journal.reader import JournalReader


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
    *({"new_head": value} for value in (None, 1, "true")),
    {"more": 1},
]


@pytest.mark.parametrize("changes", RECIPES, ids=str)
def test_a_recipe_of_anything_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    assert pretrained.Recipe  # imported: what is opened below is not
    (tmp_path / "net").mkdir()
    header = Header.from_json({**HEADER, "model": {**HEADER["model"], **changes}})
    with files_touched() as touched, pytest.raises(InputError, match="how its model is loaded"):
        weights.load(str(tmp_path / "net"), header)
    assert touched == []

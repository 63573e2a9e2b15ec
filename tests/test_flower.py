"""Federations on Flower come to the bits of the engine in one process: `make flower` runs these."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federated_toys import ToyTask, toy, toy_data
from flower_deployment import DEADLINE, Deployment, deployment, eventually
from small_federation import FEDERATION, OPTIMIZER, SIZES, digests, train
from tiny_run import write_run

from fedspzo.app.cli import main
from fedspzo.federated import Client, OptimizerConfig, iid, run
from fedspzo.journal.replica import Replica

pytestmark = pytest.mark.flower

ROUNDS = 4
LONG = 240.0
"""Seconds for a round on a busy machine, in which processes start and a model is loaded."""


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_sent_home() -> None:
    assert os.environ.get("FLWR_TELEMETRY_ENABLED") == "0", "run `make flower`"


def write_config(folder: Path, *, engine: str = "", clients: int = 2, rounds: int = ROUNDS) -> Path:
    """A run of clients of the same size, all of whom have to report."""
    write_run(folder)
    text = (folder / "run.toml").read_text()
    numbers = f"clients = {clients}\nrounds = {rounds}\nquorum = 1.0"
    text = text.replace("clients = 3\nrounds = 4", numbers)
    text = text.replace("participation = 0.7\n", "")
    text = text.replace("lr = 1e-3\n[mezo]\nlr = 1e-3\n", "lr = 1e-3\nperturbations = [1, 2]\n")
    path = folder / "run.toml"
    path.write_text(text.replace("evaluate_every = 2", "evaluate_every = 1") + engine)
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def done(folder: Path) -> int:
    """Number of rounds that are done."""
    return max((row["round"] for row in rows(folder) if "round" in row), default=-1)


def round_digests(folder: Path) -> list[str]:
    return [row["digest"] for row in rows(folder) if not row.get("summary")]


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the run with clients in one process."""
    folder = tmp_path_factory.mktemp("engine")
    output = folder / "out"
    assert main(["run", str(write_config(folder)), "--quiet", "--output", str(output)]) in (0, 4)
    return output


class TestSimulation:
    @pytest.mark.parametrize("optimizer", [OPTIMIZER, OptimizerConfig()], ids=["given", "auto"])
    def test_ends_at_the_bits_of_the_engine_in_one_process(
        self, optimizer: OptimizerConfig
    ) -> None:
        from fedspzo.integrations.flower import client_app, simulate

        replica = Replica(toy())

        def make(context: Any) -> Client:
            number = int(context.node_config["partition-id"])
            return Client(number, replica, toy_data(SIZES)[number], ToyTask())

        nothing: list[list[Any]] = [[] for _ in SIZES]  # the examples are with the clients alone
        result = simulate(
            lambda link: run(toy(), ToyTask(), nothing, FEDERATION, optimizer, link=lambda _: link),
            client_app(make),
            clients=len(SIZES),
        )
        alone = train(optimizer=optimizer)
        assert digests(result) == digests(alone)
        assert result.final.forwards == alone.final.forwards

    def test_a_config_names_the_engine(self, in_process: Path, tmp_path: Path) -> None:
        path = write_config(tmp_path, engine='[engine]\nname = "flower"\nprocesses = 2\n')
        output = tmp_path / "out"
        assert main(["run", str(path), "--quiet", "--output", str(output)]) in (0, 4)
        assert round_digests(output) == round_digests(in_process)
        ours, theirs = rows(output), rows(in_process)
        assert [r["bytes_up"] for r in ours] == [r["bytes_up"] for r in theirs]
        assert not any(row["rejected"] for row in ours if "rejected" in row)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Path]]:
    """A SuperLink, two SuperNodes with data of their own, and an app that runs on them."""
    folder = tmp_path_factory.mktemp("deployed")
    path = write_config(folder)
    examples = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    for number, part in enumerate(iid(len(examples), 2, 0)):
        own = folder / f"client{number}"
        own.mkdir()
        (own / "examples.jsonl").write_text("".join(examples[index] for index in part))
    app = folder / "app"
    output = folder / "out"
    path.write_text(path.read_text() + f'dir = "{output}"\n')
    assert main(["flower", str(path), "-o", str(app)]) == 0
    (folder / "train.jsonl").unlink()  # the server needs none of them
    with deployment(folder) as made:
        made.superlink()
        for number in range(2):
            made.supernode(number, folder / f"client{number}")
        made.flwr("run", str(app), "test")
        yield made, output


class TestDeployment:
    def test_rounds_go_on_whatever_is_killed(
        self, deployed: tuple[Deployment, Path], in_process: Path
    ) -> None:
        made, output = deployed
        eventually("a round", lambda: done(output) >= 1, LONG)

        eventually("client 1 is at work", lambda: made.processes("node1", "flwr-clientapp"), LONG)
        made.kill("node1")
        at = done(output)
        made.supernode(1, made.folder / "client1")
        eventually("the round ends", lambda: done(output) > at, LONG)

        made.kill("superlink")
        assert done(output) < ROUNDS, "the run was over before the server was killed"
        journal = (output / "journal.fspz").read_bytes()
        made.superlink()
        made.flwr("run", str(made.folder / "app"), "test")
        # a run that goes on writes its metrics anew
        eventually("the run ends", lambda: "summary" in (rows(output) or [{}])[-1], LONG)

        assert round_digests(output) == round_digests(in_process)
        assert (output / "journal.fspz").read_bytes().startswith(journal), "it began anew"

    def test_no_example_has_left_its_folder(self, deployed: tuple[Deployment, Path]) -> None:
        made, _ = deployed
        for path in (made.folder / "state.db", *(made.folder / "out").rglob("*")):
            if path.is_file():
                assert b"dull film" not in path.read_bytes(), path

    def test_weights_are_kept_from_message_to_message(
        self, deployed: tuple[Deployment, Path]
    ) -> None:
        made, _ = deployed
        kept = list((made.folder / "cache").rglob("*.weights"))
        assert [path.stem for path in kept] == [str(ROUNDS - 1)]

    def test_nobody_without_the_certificate_is_let_in(
        self, deployed: tuple[Deployment, Path]
    ) -> None:
        made, _ = deployed
        process = made.start(
            "stranger",
            "flower-supernode",
            *("--superlink", f"127.0.0.1:{made.port}", "--insecure", "--max-retries", "1"),
            *("--node-config", "partition-id=0"),
        )
        assert process.wait(DEADLINE) != 0

    def test_nothing_is_left_behind(self, deployed: tuple[Deployment, Path]) -> None:
        made, _ = deployed
        made.kill()
        assert not made.processes()


def write_key(folder: Path, name: str) -> Path:
    """Write a pair of keys as ssh-keygen does, and return the private one's file."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = ec.generate_private_key(ec.SECP384R1())
    path = folder / name
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)
    return path


def test_only_the_node_with_its_key_is_the_client(tmp_path: Path) -> None:
    """Two nodes that the SuperLink lets in say that they are client 0; one has client 0's key."""
    path = write_config(tmp_path, clients=1, rounds=1)
    output, keys = tmp_path / "out", tmp_path / "keys"
    path.write_text(path.read_text() + f'dir = "{output}"\n')
    assert main(["flower", str(path), "-o", str(tmp_path / "app")]) == 0
    keys.mkdir()
    others = tmp_path / "others.jsonl"
    others.write_text('{"text": "a great film", "label": "bad"}\n')
    with deployment(tmp_path) as made:
        made.superlink("--enable-supernode-auth")
        for name, folder, data in (
            ("node", keys, "train.jsonl"),
            ("liar", tmp_path, "others.jsonl"),
        ):
            key = write_key(folder, "0")
            made.flwr("supernode", "register", str(key.with_suffix(".pub")), "test")
            option = ("--auth-supernode-private-key", str(key))
            made.supernode(0, tmp_path / data, *option, name=name)
        made.flwr("run", str(tmp_path / "app"), "test", "--run-config", f'keys="{keys}"')
        eventually("the run ends", lambda: rows(output) and "summary" in rows(output)[-1], LONG)
        unknown = write_key(tmp_path, "unknown")
        option = ("--auth-supernode-private-key", str(unknown))
        assert made.supernode(0, others, *option, name="unknown").wait(DEADLINE) != 0
        assert "train.fedspzo" in made.log("node0")
        assert "query.fedspzo" in made.log("liar0")
        assert "train.fedspzo" not in made.log("liar0")
    alone = tmp_path / "alone"
    assert main(["run", str(path), "--quiet", "--output", str(alone)]) in (0, 4)
    assert round_digests(output) == round_digests(alone)

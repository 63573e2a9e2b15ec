"""The link over Flower's grid, on a grid of the tests' own: nodes come, go, lie and are late."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_federation import a_federation

pytestmark = pytest.mark.flower


@pytest.fixture(autouse=True)
def _run_that_messages_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


Handler = Callable[[Any], Any]
"""Makes the answer to a message, or returns None: none will come."""


@dataclass
class Grid:
    """Nodes that are functions."""

    nodes: dict[int, Handler] = field(default_factory=dict)
    keys: dict[int, bytes] = field(default_factory=dict)
    sent: list[Any] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def get_nodes(self) -> Iterator[Any]:
        for node in list(self.nodes):
            yield SimpleNamespace(node_id=node, public_key=self.keys.get(node, b""))

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        ids = []
        for message in messages:
            number = f"message {len(self.sent)}"
            message.metadata.__dict__["_message_id"] = number
            self.sent.append(message)
            self.answers[number] = self.nodes[message.metadata.dst_node_id](message)
            ids.append(number)
        return ids

    def pull_messages(self, ids: list[str]) -> list[Any]:
        found = [self.answers.pop(number) for number in ids if self.answers.get(number)]
        return found

    @property
    def asked(self) -> list[int]:
        """The nodes that were sent messages, but for the question who they are."""
        types = [(m.metadata.message_type, m.metadata.dst_node_id) for m in self.sent]
        return [node for kind, node in types if kind.startswith("train")]


def flwr() -> Any:
    """Flower's messages. This file is read where Flower is not, and its tests are not run there."""
    return importlib.import_module("flwr.app")


def node(client: int, *messages: bytes, silent: bool = False, **answer: Any) -> Handler:
    """A node that says it is a client, and answers with these messages."""
    from fedspzo.integrations.flower.envelopes import Answer

    values = {"round": 0, "digest": "", **answer}

    def handle(message: Any) -> Any:
        told = message.metadata.message_type.startswith("query")
        if silent and not told:
            return None
        content = Answer(client, messages=() if told else messages, **values).pack()
        return flwr().Message(content, reply_to=message)

    return handle


def failing(reason: str) -> Handler:
    return lambda message: flwr().Message(flwr().Error(1, reason), reply_to=message)


def link(grid: Grid, **options: Any) -> Any:
    from fedspzo.integrations.flower import FlowerLink

    made = FlowerLink(grid, **{"poll": 0.01, "patience": 0.2, **options})
    made._look = _often(made, made._look)
    return made


def _often(made: Any, look: Callable[[], None]) -> Callable[[], None]:
    """Looks for nodes each time, not once a second."""

    def now() -> None:
        made._looked = -1.0
        look()

    return now


class TestExchange:
    def test_a_message_goes_to_the_node_that_is_the_client(self) -> None:
        grid = Grid({7: node(1, b"one"), 8: node(0, b"zero")})
        to = link(grid)
        assert to.exchange(0, b"plan", ()) == [b"zero"]
        assert to.exchange(1, b"plan", ()) == [b"one"]
        assert grid.asked == [8, 7]

    def test_messages_and_downloads_arrive_as_they_were_sent(self) -> None:
        from fedspzo.integrations.flower.envelopes import unpack

        seen = []

        def handle(message: Any) -> Any:
            run, body, weights = unpack(message.content)
            seen.append((run, body, list(weights)))
            return node(0)(message)

        link(Grid({1: handle}), run="r").exchange(0, b"plan\0", iter([b"\0w0", b"", b"w2"]))
        assert seen[1:] == [("r", b"plan\0", [b"\0w0", b"", b"w2"])]

    def test_what_was_started_is_sent_once(self) -> None:
        grid = Grid({1: node(0, b"a"), 2: node(1, b"b")})
        to = link(grid)
        for client in range(2):
            to.start(client, b"plan", ())
        assert grid.asked == [1, 2]
        assert [to.exchange(client, b"plan", ()) for client in range(2)] == [[b"a"], [b"b"]]
        assert grid.asked == [1, 2]

    def test_another_message_than_the_one_started_is_sent_too(self) -> None:
        grid = Grid({1: node(0, b"a")})
        to = link(grid)
        to.holds(0)
        to.start(0, b"plan", ())
        assert to.exchange(0, b"another", ()) == [b"a", b"a"]
        assert grid.asked == [1, 1]

    def test_a_late_answer_comes_with_the_next(self) -> None:
        grid = Grid({1: node(0, silent=True)})
        to = link(grid, timeout=0.05)
        with pytest.raises(TimeoutError, match=r"no answer within 0.05 s"):
            to.exchange(0, b"plan", ())
        late = grid.sent[-1]
        grid.answers[late.metadata.message_id] = node(0, b"late")(late)
        grid.nodes[1] = node(0, b"new")
        assert sorted(to.exchange(0, b"next", ())) == [b"late", b"new"]

    def test_a_client_that_failed_is_named_with_its_exception(self) -> None:
        from fedspzo.integrations.flower import ClientFailed

        grid = Grid({1: node(0, error="ValueError: no")})
        with pytest.raises(ClientFailed, match="ValueError: no"):
            link(grid).exchange(0, b"plan", ())

    def test_flowers_own_errors_are_raised(self) -> None:
        grid = Grid({1: node(0)})
        to = link(grid)
        to.holds(0)
        grid.nodes[1] = failing("Node Unavailable")
        with pytest.raises(ConnectionError, match="Node Unavailable"):
            to.exchange(0, b"plan", ())

    def test_a_client_that_is_not_there_is_waited_for(self) -> None:
        with pytest.raises(ConnectionError, match="no node is client 0; start a SuperNode"):
            link(Grid()).exchange(0, b"plan", ())
        grid = Grid()
        threading.Timer(0.1, lambda: grid.nodes.update({1: node(0, b"a")})).start()
        assert link(grid, patience=30).exchange(0, b"plan", ()) == [b"a"]

    def test_clients_that_are_absent_are_waited_for_together(self) -> None:
        to = link(Grid(), patience=0.5)
        start = time.monotonic()
        for client in range(20):
            assert to.holds(client) is None
            to.start(client, b"plan", ())
            with pytest.raises(ConnectionError):
                to.exchange(client, b"plan", ())
        assert 0.5 < time.monotonic() - start < 5

    def test_patience_counts_the_waiting_alone(self) -> None:
        grid = Grid()
        to = link(grid, patience=0.5)
        time.sleep(0.6)  # the server evaluates its model
        threading.Timer(0.2, lambda: grid.nodes.update({1: node(0, b"a")})).start()
        assert to.exchange(0, b"plan", ()) == [b"a"]

    def test_a_download_to_a_node_that_was_started_again_has_failed(self) -> None:
        grid = Grid({1: node(0, silent=True)})
        to = link(grid)
        to.holds(0)
        to.start(0, b"plan", iter([b"weights"]))
        grid.nodes[2] = node(0, b"again")
        with pytest.raises(ConnectionError, match="started again during a download"):
            to.exchange(0, b"plan", iter([]))
        assert to.exchange(0, b"plan", iter([b"weights"])) == [b"again"]

    def test_a_node_that_came_later_takes_the_place_and_the_message(self) -> None:
        grid = Grid({1: node(0, silent=True)})
        threading.Timer(0.1, lambda: grid.nodes.update({2: node(0, b"again")})).start()
        assert link(grid).exchange(0, b"plan", ()) == [b"again"]
        assert grid.asked == [1, 2]

    @pytest.mark.parametrize(
        "content",
        [
            *({}, {"client": 0}, {"client": "0"}),
            {"client": 0, "round": -2, "digest": "d", "messages": [b"a"], "error": ""},
            {"client": -1, "round": 2, "digest": "d", "messages": [b"a"], "error": ""},
        ],
    )
    def test_an_answer_that_is_none_is_refused(self, content: dict[str, Any]) -> None:
        grid = Grid({1: node(0)})
        to = link(grid)
        to.holds(0)
        record = flwr().RecordDict({"fedspzo": flwr().ConfigRecord(content)})
        grid.nodes[1] = lambda message: flwr().Message(record, reply_to=message)
        with pytest.raises(ValueError, match="a node's answer has"):
            to.exchange(0, b"plan", ())

    def test_a_node_without_a_number_is_asked_once(self, caplog: Any) -> None:
        grid = Grid({1: failing("partition-id is None")})
        with caplog.at_level(logging.WARNING), pytest.raises(ConnectionError):
            link(grid).exchange(0, b"plan", ())
        assert len(grid.sent) == 1
        assert "partition-id is None" in caplog.text

    def test_closing_ends_the_waiting(self) -> None:
        to = link(Grid({1: node(0, silent=True)}))
        threading.Timer(0.1, to.close).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            to.exchange(0, b"plan", ())
        assert time.monotonic() - start < 10


class TestWhatClientsHold:
    def test_a_client_says_what_it_holds(self) -> None:
        to = link(Grid({1: node(0, b"a", round=3, digest="d3")}))
        assert to.holds(0) == (3, "d3")
        assert to.holds(1) is None

    def test_each_answer_says_it_again(self) -> None:
        grid = Grid({1: node(0)})
        to = link(grid)
        assert to.holds(0) is None
        grid.nodes[1] = node(0, round=4, digest="d4")
        to.exchange(0, b"plan", ())
        assert to.holds(0) == (4, "d4")

    def test_a_client_whose_node_has_gone_holds_nothing(self) -> None:
        grid = Grid({1: node(0, round=3, digest="d3")})
        to = link(grid)
        to.holds(0)
        grid.nodes.clear()
        assert to.holds(0) is None


class TestKeys:
    def test_a_node_with_another_key_is_not_the_client(self, caplog: Any) -> None:
        grid = Grid({1: node(0, b"liar"), 2: node(0, b"a")}, keys={1: b"k1", 2: b"k2"})
        assert link(grid, keys={0: b"k2"}).exchange(0, b"plan", ()) == [b"a"]
        assert grid.asked == [2]
        assert "has another key" in caplog.text

    def test_keys_are_read_as_ssh_keygen_writes_them(self, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        from fedspzo.app.flower_server import public_keys
        from fedspzo.errors import InputError

        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (tmp_path / "0.pub").write_bytes(line + b" me@here\n")
        assert public_keys(tmp_path, 1) == {0: public_key_to_bytes(key)}
        with pytest.raises(InputError, match=r"1\.pub: holds no public key"):
            public_keys(tmp_path, 2)


class TestKeptWeights:
    def test_weights_of_the_latest_round_come_back(self, tmp_path: Path) -> None:
        from fedspzo.integrations.flower.kept_weights import KeptWeights

        server, clients = a_federation()
        fresh = clients[1].replica.copy()
        kept = KeptWeights(tmp_path / "kept", "run")
        for _ in range(2):
            reports = [
                clients[n].handle(server.plan(n, since=clients[n].replica.round))
                for n in server.sample()
            ]
            server.aggregate(reports)
            kept.save(server.replica, server.digest)
        assert kept.latest() == (2, server.digest)
        kept.load(fresh)
        assert (fresh.round, fresh.digest()) == (2, server.digest)
        assert [path.name for path in tmp_path.rglob("*.weights")] == ["2.weights"]
        assert KeptWeights(tmp_path / "kept", "another run").latest() is None

    def test_processes_that_begin_a_run_together_do_not_disturb_each_other(
        self, tmp_path: Path
    ) -> None:
        from fedspzo.integrations.flower.kept_weights import KeptWeights

        server, clients = a_federation()
        server.aggregate([clients[n].handle(server.plan(n, since=0)) for n in server.sample()])
        KeptWeights(tmp_path, "an earlier run").save(server.replica, server.digest)
        kept = KeptWeights(tmp_path, "run")
        (kept._folder).mkdir()
        (kept._folder / ".1.weights.being_written").write_bytes(b"")
        kept._remove_other_runs()
        assert [path.name for path in kept._folder.iterdir()] == [".1.weights.being_written"]
        assert [path.name for path in tmp_path.iterdir()] == [kept._folder.name]

    def test_a_full_disk_is_a_warning(self, tmp_path: Path, caplog: Any) -> None:
        from fedspzo.integrations.flower.kept_weights import KeptWeights

        server, clients = a_federation()
        server.aggregate([clients[n].handle(server.plan(n, since=0)) for n in server.sample()])
        (tmp_path / "file").write_bytes(b"")
        KeptWeights(tmp_path / "file", "run").save(server.replica, server.digest)
        assert "the weights cannot be kept" in caplog.text

    @pytest.mark.parametrize("damage", ["flip", "cut", "head"])
    def test_damaged_weights_are_removed_and_not_used(self, tmp_path: Path, damage: str) -> None:
        from fedspzo.integrations.flower.kept_weights import KeptWeights

        server, clients = a_federation()
        fresh = clients[1].replica.copy()
        server.aggregate([clients[n].handle(server.plan(n, since=0)) for n in server.sample()])
        kept = KeptWeights(tmp_path, "run")
        kept.save(server.replica, server.digest)
        (path,) = tmp_path.rglob("*.weights")
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
        elif damage == "cut":
            del data[-10:]
        else:
            data[:5] = b"hello"
        path.write_bytes(data)
        kept.load(fresh)
        assert fresh.round == 0
        assert kept.latest() is None

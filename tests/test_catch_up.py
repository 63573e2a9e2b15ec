"""Clients that join late or were long away: by replay, or by a download where that is cheaper."""

from __future__ import annotations

import logging
import pickle
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from federated_toys import Toy, ToyTask, toy, toy_data
from first_steps_toys import resolve

from fedspzo.blocks.cut import Blocks, split
from fedspzo.federated import Client, FederationConfig, OptimizerConfig, Plan, Server, run
from fedspzo.federated.exchange import InProcess
from fedspzo.federated.journal.writer import RunJournal
from fedspzo.federated.protocol.download import encode, load
from fedspzo.federated.protocol.download import size as size_of_download
from fedspzo.federated.protocol.updates import Scalars, Update
from fedspzo.federated.update_cache import UpdateCache
from fedspzo.journal.replica import Replica

pytestmark = pytest.mark.slow

SIZES = [5, 9, 16, 30]
OPTIMIZER = OptimizerConfig(lr=1e-2, perturbations=(1, 4))
RESOLVED = replace(OPTIMIZER, rounding="nearest")
FEDERATION = FederationConfig(clients=4, rounds=99, local_steps=2, participation=0.5, seed=11)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A toy model on several threads waits for its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def after(
    rounds: int, dtype: torch.dtype = torch.float32, federation: FederationConfig = FEDERATION
) -> Server:
    """A server that has played so many rounds."""
    base = Replica(toy(dtype))
    shared = base.copy()
    clients = [Client(n, shared, own, ToyTask()) for n, own in enumerate(toy_data(SIZES))]
    server = Server(base, federation, resolve(OPTIMIZER, clients, batch_size=8))
    for _ in range(rounds):
        plans = [server.plan(number, since=shared.round) for number in server.sample()]
        server.aggregate([clients[p.client].handle(p, server.download()) for p in plans])
    return server


def newcomer(dtype: torch.dtype = torch.float32, blocks: Blocks | None = None) -> Client:
    return Client(0, Replica(blocks or toy(dtype)), toy_data([7])[0], ToyTask())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_client_that_joins_late_downloads_or_replays_to_the_same_bits(dtype: torch.dtype) -> None:
    for rounds in (2, 30):
        server, client = after(rounds, dtype), newcomer(dtype)
        plan = Plan.decode(server.plan(0, since=0).encode())
        assert plan.download == (rounds == 30)
        report = client.handle(plan, server.download())
        assert report.digest == server.digest
        assert client.replica.round == rounds
        # and from there it goes on by replay
        server.aggregate([report, *(replace(report, client=n) for n in server.sample())])
        client.handle(server.plan(0, since=rounds, train=False))
        assert client.replica.digest() == server.digest


def test_a_catch_up_never_costs_more_than_a_download() -> None:
    server = after(40)
    messages = list(server.download())
    assert sum(map(len, messages)) == server.download_bytes
    bare = len(server.plan(0, since=40).encode())
    chosen = []
    for since in range(41):
        plan = server.plan(0, since=since)
        missed = len(plan.encode()) - bare
        chosen.append(plan.download)
        assert missed <= server.download_bytes
        if plan.download:  # a round more than what is kept would have cost more
            assert missed == 0
            later = server.plan(0, since=chosen.count(True))
            assert len(later.encode()) - bare <= server.download_bytes
    kept = chosen.index(False)
    assert chosen == [True] * kept + [False] * (41 - kept)
    assert 0 < kept < 40
    one = len(server.updates[0].encode())
    total = sum(len(update.encode()) for update in server.updates)
    assert total <= server.download_bytes < total + one
    assert [update.round for update in server.updates] == list(range(kept, 40))


def test_the_history_keeps_what_fits() -> None:
    history = UpdateCache(100)

    def update(round: int, terms: int) -> Update:
        return Update(round, ((0, Scalars(1, (0,), np.ones((1, terms), np.float32))),))

    size = len(update(0, 1).encode())
    assert size == 19
    for round in range(7):
        history.append(update(round, 1))
    assert [kept.round for kept in history.updates] == [2, 3, 4, 5, 6]
    assert history.last(0) == ()
    assert [kept.round for kept in history.last(2) or ()] == [5, 6]
    assert history.last(6) is None
    history.append(update(7, 21))  # 99 bytes
    assert [kept.round for kept in history.updates] == [7]
    history.append(update(8, 22))  # too large by itself
    assert history.updates == ()
    assert history.last(0) == ()
    assert history.last(1) is None


def with_body(message: bytes, change: bytes, offset: int) -> bytes:
    data = bytearray(message[:-4])
    data[10 + offset : 10 + offset + len(change)] = change
    return bytes(data) + struct.pack("<I", zlib.crc32(data))


def test_a_download_that_is_not_whole_changes_nothing() -> None:
    server, client = after(30), newcomer()
    before = client.replica.digest()
    good = list(server.download())
    flipped = with_body(good[1], bytes([good[1][18] ^ 1]), 8)
    for wrong, message in (
        (good[:-1], r"9 of 10 tensors came|\d+ of \d+ tensors came"),
        ([good[1], good[0], *good[2:]], "message 0 says"),
        ([*good, good[-1]], "send all of them once"),
        ([good[0][:-1], *good[1:]], "send it whole"),
        ([with_body(good[0], struct.pack("<I", 29), 0), *good[1:]], r"\(29, 0\), expected \(30, 0"),
        ([good[0], flipped, *good[2:]], "with the weights received the model has digest"),
        ([good[0], *good[2:]], "message 1 says"),
        ([server.plan(0, since=30).encode()], "kind 1, expected kind 3"),
        ([], "0 of"),
    ):
        with pytest.raises(ValueError, match=message):
            client.handle(server.plan(0, since=0), iter(wrong))
        assert (client.replica.round, client.replica.digest()) == (0, before)
    client.handle(server.plan(0, since=0), good)
    assert client.replica.digest() == server.digest


def test_a_parameter_without_elements_is_downloaded() -> None:
    def with_an_empty_one() -> Replica:
        model = Toy()
        model.head.register_parameter("extra", torch.nn.Parameter(torch.zeros(0, 3)))
        return Replica(split(model, at=-1))

    server, late = with_an_empty_one(), with_an_empty_one()
    assert late.digest() != server.digest()
    server.round = 1
    messages = list(encode(server))
    assert sum(map(len, messages)) == size_of_download(server)
    load(late, 1, server.digest(), messages)
    assert (late.round, late.digest()) == (1, server.digest())


def test_a_download_for_another_model_is_refused() -> None:
    server = after(30)
    other = newcomer(torch.bfloat16)
    with pytest.raises(ValueError, match=r"tensor \d has \d+ bytes, here it has \d+"):
        other.handle(server.plan(0, since=0), server.download())
    blocks = toy()
    blocks.model.head.bias.requires_grad_(False)
    blocks.model.head.bias.data += 1  # does not travel: it is frozen
    frozen = Replica(Blocks.single(blocks.model))
    whole = Replica(Blocks.single(toy().model))
    whole.blocks.model.head.bias.requires_grad_(False)
    sender = Replica(Blocks.single(whole.blocks.model), round=3)
    with pytest.raises(ValueError, match="start from the same base model"):
        load(frozen, 3, sender.digest(), encode(sender))
    assert frozen.round == 0


def test_a_run_says_who_downloads_and_counts_the_bytes(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    federation = replace(FEDERATION, clients=12, participation=0.1, rounds=60, local_steps=1)
    data = toy_data([4] * 12)
    sent: list[int] = []

    class Counting:
        def __init__(self, link):
            self.link = link

        def exchange(self, client, plan, weights):
            weights = list(weights)
            sent.append(len(plan) + sum(map(len, weights)))
            assert bool(weights) == Plan.decode(plan).download
            return self.link.exchange(client, plan, weights)

    with (
        caplog.at_level(logging.INFO, "fedspzo"),
        RunJournal(tmp_path / "journal.fspz", source="toy") as journal,
    ):
        result = run(toy(), ToyTask(), data, federation, OPTIMIZER, link=Counting, journal=journal)
    downloads = {done.round - 1: done.downloads for done in result.rounds if done.downloads}
    assert 0 < len(downloads) < 60
    assert all(len(clients) == 1 for clients in downloads.values())
    lines = [f"round {r}: client {c} downloads the weights" for r, (c,) in downloads.items()]
    assert [record.getMessage() for record in caplog.records] == lines
    assert result.final.bytes_down == sum(sent)
    with RunJournal(tmp_path / "journal.fspz", source="toy") as journal:
        again = run(toy(), ToyTask(), data, federation, OPTIMIZER, journal=journal)
    assert again.rounds == result.rounds  # from the journal
    # whoever holds a copy of the model makes no difference
    assert run(toy(), ToyTask(), data, federation, OPTIMIZER, replicas=12).final.digest == (
        result.final.digest
    )


@pytest.mark.parametrize("taken", [0, 2, None])
def test_a_client_that_is_not_reached_has_downloaded_nothing(taken: int | None) -> None:
    """Without an answer, a download is what was taken of it: nothing, two messages, or all."""
    federation = replace(FEDERATION, clients=12, participation=0.1, rounds=60, quorum=0.1)
    federation = replace(federation, local_steps=1, participation=0.25, seed=5)
    sent: list[int] = []
    whole: list[int] = []

    class Lossy:
        def __init__(self, link):
            self.link = link

        def exchange(self, client, plan, weights):
            asked = Plan.decode(plan)
            sent.append(len(plan))
            if asked.download and client % 2:
                messages = list(islice(weights, taken))
                sent.append(sum(map(len, messages)))
                if taken is None:
                    whole.append(client)
                raise ConnectionResetError("reset")
            messages = list(weights)
            sent.append(sum(map(len, messages)))
            whole.extend([client] if asked.download else [])
            return self.link.exchange(client, plan, messages)

    result = run(toy(), ToyTask(), toy_data([4] * 12), federation, OPTIMIZER, link=Lossy)
    assert result.final.bytes_down == sum(sent)
    named = [client for done in result.rounds for client in done.downloads]
    assert sorted(named) == sorted(whole)
    lost = [fault for done in result.rounds for fault in done.rejected]
    assert lost
    assert all(fault.client % 2 for fault in lost)


@pytest.mark.parametrize(("client", "since"), [(4, 0), (-1, 0), (0, 3), (0, -1)])
def test_a_plan_for_nobody_or_from_nowhere_is_refused(client: int, since: int) -> None:
    with pytest.raises(ValueError, match=r"(client|since) is -?\d; give a whole number from 0 to"):
        after(2).plan(client, since=since)


def test_a_client_that_is_asked_again_sends_the_same_report_and_computes_nothing() -> None:
    server, client = after(0), newcomer()
    first = client.handle(server.plan(0, since=0))
    client.task = None  # type: ignore[assignment]  # it is not asked for a loss
    assert client.handle(Plan.decode(server.plan(0, since=0).encode())) is first


@pytest.mark.slow
def test_what_a_server_keeps_grows_with_neither_rounds_nor_clients() -> None:
    def size(server: Server) -> int:
        kept = {name: value for name, value in vars(server).items() if name != "replica"}
        return len(pickle.dumps(kept))

    crowd = replace(FEDERATION, clients=60000, participation=2 / 60000)
    sizes = [size(after(40)), size(after(80)), size(Server(Replica(toy()), crowd, RESOLVED))]
    assert abs(sizes[0] - sizes[1]) < 500  # one update
    assert sizes[2] < sizes[0]


class Elsewhere(InProcess):
    """A link to clients in other processes. Client 1 says that it holds what it does not."""

    def __init__(self, clients: Mapping[int, Client], digests: list[str], lie: int) -> None:
        super().__init__(clients)
        self.digests, self.lie = digests, lie

    def start(self, client: int, message: bytes, weights: Iterable[bytes]) -> None:
        """Send nothing: `exchange` does."""

    def holds(self, client: int) -> tuple[int, str] | None:
        if client == 1:
            return self.lie, self.digests[max(self.lie, -len(self.digests))]
        replica = self.clients[client].replica
        return replica.round, replica.digest()


@pytest.mark.parametrize("lie", [-1, -2, -99])
def test_a_client_that_says_it_holds_no_round_starts_from_the_base(lie: int) -> None:
    base = Replica(toy())
    data = enumerate(toy_data([5, 9]))
    clients = {n: Client(n, base.copy(), own, ToyTask()) for n, own in data}
    digests: list[str] = []
    federation = replace(FEDERATION, participation=1.0, rounds=4, clients=2)
    result = run(
        toy(),
        ToyTask(),
        [[], []],
        federation,
        OPTIMIZER,
        link=lambda _: Elsewhere(clients, digests, lie),
        on_round=lambda done: digests.append(done.digest),
    )
    assert result.final.round == 4
    assert not any(done.rejected for done in result.rounds)

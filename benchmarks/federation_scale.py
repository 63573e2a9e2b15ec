"""Scale in one process: what a round costs the server with 100, 1,000 and 10,000 clients.

    python benchmarks/federation_scale.py           # writes results/federation_scale.md and .png
    python benchmarks/federation_scale.py --fast    # a few rounds, for CI: writes nothing

100 clients a round take 10 local steps on a classifier of 67,000 weights. The server's time is that
of the round without what the clients take. Its memory is what `tracemalloc` finds beside the model
in rounds whose reports are made up, so that no client is in it. What a device would know itself,
the round it was last at, is kept outside the server and not counted.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import struct
import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from machine import machine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from fedspzo.blocks.cut import split
from fedspzo.federated import Client, FederationConfig, Link, OptimizerConfig, Report, Server
from fedspzo.federated.exchange import InProcess, play
from fedspzo.federated.protocol.updates import Scalars
from fedspzo.journal.replica import Replica

RESULTS = Path(__file__).parent / "results"
CROWDS = (100, 1_000, 10_000)
SAMPLED, LOCAL_STEPS, WIDTH, CLASSES = 100, 10, 128, 10
_ROUND_AND_DIGEST = struct.Struct("<I12x16s")  # of a plan, behind the 10 bytes of its header
OPTIMIZER = OptimizerConfig(lr=(1e-3, 4e-3), perturbations=(1, 4), sides="one", rounding="nearest")


class Layer(nn.Linear):
    """A residual one."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(super().forward(x))


class Classifier(nn.Module):
    """Four layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(WIDTH, WIDTH) for _ in range(4)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.head(x)
        return scores


class Problem:
    """Cross entropy of (features, label) pairs."""

    def collate(self, examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)


@dataclass
class Timed:
    """A link that adds up the time beyond it."""

    link: Link
    seconds: float = 0.0

    def exchange(self, client: int, plan: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        start = time.perf_counter()
        answers = list(self.link.exchange(client, plan, weights))
        self.seconds += time.perf_counter() - start
        return answers


class MadeUp:
    """A link to nobody: reports are random scalars, of so many steps and directions."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.random = np.random.RandomState(0)
        self.shape = shape

    def exchange(self, client: int, plan: bytes, weights: Iterable[bytes]) -> Iterable[bytes]:
        number, digest = _ROUND_AND_DIGEST.unpack_from(plan, 10)
        scalars = self.random.standard_normal(self.shape).astype(np.float32)
        steps = self.shape[0]
        report = Report(
            round=number,
            client=client,
            digest=digest.hex(),
            examples=8,
            gradients=Scalars(steps, tuple(range(steps)), scalars),
            loss=1.0,
            forwards=1.0,
        )
        return [report.encode()]


@dataclass
class Measured:
    """What each round cost; times in seconds, sizes in bytes."""

    server: list[float] = field(default_factory=list)
    clients: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    up: list[int] = field(default_factory=list)
    downloads: int = 0
    terms: int = 0

    @property
    def usual(self) -> float:
        """The median of the server's times, without the first round's."""
        return statistics.median(self.server[1:])


def federation(clients: int, rounds: int) -> FederationConfig:
    share = SAMPLED / clients
    return FederationConfig(
        clients=clients, rounds=rounds, local_steps=LOCAL_STEPS, participation=share
    )


def base() -> Replica:
    torch.manual_seed(0)
    return Replica(split(Classifier(), at=-1))


def measure(settings: FederationConfig, link: Link, *, trace: bool = False) -> Measured:
    """Play the rounds."""
    server, timed, measured = Server(base(), settings, OPTIMIZER), Timed(link), Measured()
    known = dict.fromkeys(range(settings.clients), 0)
    if trace:
        tracemalloc.start()
    for _ in range(settings.rounds):
        timed.seconds, start = 0.0, time.perf_counter()
        done = play(server, timed, known, time.perf_counter)
        measured.server.append(time.perf_counter() - start - timed.seconds)
        measured.clients.append(timed.seconds)
        measured.down.append(done.bytes_down)
        measured.up.append(done.bytes_up)
        measured.downloads += len(done.downloads)
        measured.terms = done.terms
        known.update({report.client: done.round for report in done.reports})
        del done
        if trace:
            gc.collect()
            measured.memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return measured


def with_clients(clients: int, rounds: int) -> Measured:
    """Clients that train: they share one copy of the model, and each has eight examples."""
    random = torch.Generator().manual_seed(1)
    examples = [
        (torch.randn(WIDTH, generator=random), int(torch.randint(CLASSES, (), generator=random)))
        for _ in range(1_000)
    ]
    shared = base()
    everyone = [
        Client(number, shared, [examples[(8 * number + i) % 1_000] for i in range(8)], Problem())
        for number in range(clients)
    ]
    return measure(federation(clients, rounds), InProcess(everyone))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="few rounds: a check, not a result")
    fast = parser.parse_args().fast
    torch.set_num_threads(1)
    crowds = CROWDS[:2] if fast else CROWDS
    rounds, traced_rounds = (2, 3) if fast else (15, 40)

    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"{machine()}; {SAMPLED} clients a round, {LOCAL_STEPS} local steps, {rounds} rounds\n")
    say("| clients | server, s a round | clients, s a round | up, kB | down, MB | downloads |")
    say("| --- | --- | --- | --- | --- | --- |")
    trained = {}
    for clients in crowds:
        m = trained[clients] = with_clients(clients, rounds)
        say(
            f"| {clients:,} | {m.usual:.3f} | {statistics.median(m.clients):.2f}"
            f" | {statistics.mean(m.up) / 1e3:.0f} | {statistics.mean(m.down) / 1e6:.1f}"
            f" | {m.downloads / (SAMPLED * rounds):.0%} |"
        )
    shape = LOCAL_STEPS, sum(OPTIMIZER.directions)
    traced = {n: measure(federation(n, traced_rounds), MadeUp(shape), trace=True) for n in crowds}
    half = traced_rounds // 2
    say(f"\n| clients | server's MB after {half} rounds | after {traced_rounds} |")
    say("| --- | --- | --- |")
    for n, m in traced.items():
        say(f"| {n:,} | {m.memory[half - 1] / 1e6:.2f} | {m.memory[-1] / 1e6:.2f} |")
    sizes = [(10, 1), (10, 10), (30, 10), (100, 10), (300, 10)][: 2 if fast else None]
    terms = [
        measure(
            replace(federation(1_000, 9), participation=n / 1_000, local_steps=s),
            MadeUp((s, shape[1])),
        )
        for n, s in sizes
    ]
    say("\n| terms a round, of 1,000 clients | server, s a round | us a term |")
    say("| --- | --- | --- |")
    for m in terms:
        say(f"| {m.terms:,} | {m.usual:.4f} | {m.usual / m.terms * 1e6:.0f} |")
    if not fast:
        (RESULTS / "federation_scale.md").write_text("\n".join(lines) + "\n")
        plot(trained, traced, terms)


def plot(trained: dict[int, Measured], traced: dict[int, Measured], terms: list[Measured]) -> None:
    """The three findings side by side."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{SAMPLED} clients a round, {LOCAL_STEPS} local steps; {machine()}")
    times, memory, cost = figure.subplots(1, 3)
    for clients, m in trained.items():
        times.plot(range(1, len(m.server) + 1), m.server, label=f"{clients:,} clients")
    times.set(title="server, seconds a round", xlabel="round", ylim=(0, None))
    for clients, m in traced.items():
        rounds = range(1, len(m.memory) + 1)
        memory.plot(rounds, [b / 1e6 for b in m.memory], label=f"{clients:,} clients")
    memory.set(title="server, MB beside the model", xlabel="round", ylim=(0, None))
    cost.plot([m.terms for m in terms], [m.usual for m in terms], marker="o")
    cost.set(
        title="server, seconds a round", xlabel="terms of a round", ylim=(0, None), xlim=(0, None)
    )
    times.legend(frameon=False)
    memory.legend(frameon=False)
    figure.savefig(RESULTS / "federation_scale.png", dpi=120)


if __name__ == "__main__":
    main()

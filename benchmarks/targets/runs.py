"""One run: a method at a learning rate and a seed, watched until its targets are reached."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch
from machine import machine
from torch import nn

from fedspzo import Blocks
from fedspzo.federated import RoundResult, dirichlet
from fedspzo.federated.optimizers import spzo
from fedspzo.federated.partition import draw
from fedspzo.seeds import derive

from .methods import Method, federation
from .problems import Loaded, Problem


@dataclass(frozen=True)
class Setting:
    """Central training (`alpha` None), or a federation with label skew `alpha`."""

    alpha: float | None = None
    local_steps: int = 1

    @property
    def name(self) -> str:
        if self.alpha is None:
            return "central"
        return f"alpha {self.alpha:g}, {self.local_steps} local steps"


@dataclass(frozen=True)
class Point:
    """Where a run stood when it was evaluated; costs are totals, of all clients."""

    forwards: float
    loss: float
    accuracy: float
    seconds: float
    bytes_up: int = 0
    bytes_down: int = 0


EARLIER = "AMD EPYC, 2 processors, torch 2.13.0, 27 November 2026"
"""The machine of the runs that were made before runs named theirs."""


def here() -> str:
    """The machine, torch's version and the date."""
    return f"{machine()}, torch {torch.__version__}, {date.today()}"


@dataclass
class Run:
    """A run's curve, why it ended ("targets", "budget" or "diverged"), and on what machine."""

    problem: str
    setting: str
    method: str
    lr: float
    seed: int
    ended: str = ""
    curve: list[Point] = field(default_factory=list)
    machine: str = EARLIER

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        return self.problem, self.setting, self.method, self.lr, self.seed

    def cost(self, *, accuracy: float = 0.0, loss: float = math.inf) -> Point | None:
        """The first point at which both targets are met, and still are at the next one."""
        met = [p.accuracy >= accuracy and p.loss <= loss for p in self.curve]
        for number, (point, now) in enumerate(zip(self.curve, met, strict=True)):
            if now and all(met[number : number + 2]):
                return point
        return None


class _Ended(Exception):
    pass


class Watch:
    """Evaluates a model in training as often as its problem says, and ends the run."""

    def __init__(self, run: Run, loaded: Loaded, budget: float) -> None:
        self.run, self.loaded, self.budget = run, loaded, budget
        self._start = time.perf_counter()
        self._evaluating = 0.0
        self._due = 0.0

    def look(self, model: nn.Module, forwards: float, up: int = 0, down: int = 0) -> None:
        """Evaluate if it is time; raise `_Ended` if there is nothing more to learn."""
        if forwards < self._due:
            return
        self._due = forwards + self.loaded.problem.every
        begin = time.perf_counter()
        found = self.loaded.evaluate(model)
        self._evaluating += time.perf_counter() - begin
        seconds = time.perf_counter() - self._start - self._evaluating
        loss, accuracy = found["loss"], found["accuracy"]
        curve = self.run.curve
        curve.append(Point(round(forwards, 2), loss, accuracy, round(seconds, 3), up, down))
        problem = self.loaded.problem
        reached = (
            self.run.cost(accuracy=problem.accuracies[-1]),
            self.run.cost(loss=problem.losses[-1]),
        )
        if len(curve) > 1 and all(point and point is not curve[-1] for point in reached):
            self._end("targets")
        if not math.isfinite(loss) or loss > 2 * curve[0].loss + 1:
            self._end("diverged")
        if forwards >= self.budget:
            self._end("budget")

    def _end(self, why: str) -> None:
        self.run.ended = why
        raise _Ended


def race(
    loaded: Loaded, setting: Setting, method: Method, lr: float, seed: int, budget: float
) -> Run:
    """Train until both last targets are reached, the run diverges, or its budget is spent."""
    problem = loaded.problem
    run = Run(problem.name, setting.name, method.name, lr, seed, machine=here())
    blocks = loaded.split(method.cut)
    try:
        if setting.alpha is None:
            _central(Watch(run, loaded, budget), blocks, method, lr, seed)
        else:
            watch = Watch(run, loaded, budget)
            _federated(watch, blocks, setting, method, lr, seed)
    except _Ended:
        pass
    return run


def _central(watch: Watch, blocks: Blocks, method: Method, lr: float, seed: int) -> None:
    loaded = watch.loaded
    optimizer = spzo(blocks, method.optimizer(lr), seed=seed)
    while True:
        watch.look(blocks.model, optimizer.forwards)
        chosen = draw(len(loaded.train), loaded.problem.batch, derive(seed, optimizer.steps))
        batch = loaded.task.collate([loaded.train[i] for i in chosen])
        optimizer.step(lambda batch=batch: loaded.task.loss(blocks.model, batch))


def _federated(
    watch: Watch, blocks: Blocks, setting: Setting, method: Method, lr: float, seed: int
) -> None:
    loaded, problem = watch.loaded, watch.loaded.problem
    assert setting.alpha is not None
    labels = [example.label for example in loaded.train]
    parts = dirichlet(labels, clients=problem.clients, alpha=setting.alpha, seed=seed)

    def look(result: RoundResult) -> None:
        watch.look(blocks.model, result.forwards, result.bytes_up, result.bytes_down)

    method.federated(
        blocks,
        loaded.task,
        [[loaded.train[i] for i in part] for part in parts],
        federation(
            method,
            clients=problem.clients,
            rounds=10**6,
            local_steps=setting.local_steps,
            batch=problem.batch,
            seed=seed,
        ),
        method.optimizer(lr),
        on_round=look,
    )


class Results:
    """The runs so far, one line of JSON each; what is there is not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[tuple[str, str, str, float, int], Run] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):  # a torn last line is run again
                    run = _read(json.loads(line))
                    self.runs[run.key] = run

    def get(
        self,
        loaded: Loaded,
        setting: Setting,
        method: Method,
        lr: float,
        seed: int,
        bound: float = math.inf,
    ) -> Run:
        """The run, from the file or made now; it is given up at `bound` full forward passes."""
        more = 1 if setting.alpha is None else loaded.problem.federated_budget
        budget = loaded.problem.budget * more
        key = (loaded.problem.name, setting.name, method.name, lr, seed)
        if key not in self.runs:
            run = race(loaded, setting, method, lr, seed, min(budget, bound))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(run), separators=(",", ":")) + "\n")
            self.runs[key] = run
        return self.runs[key]


def _read(value: dict[str, object]) -> Run:
    curve: list[dict[str, float]] = value.pop("curve")  # type: ignore[assignment]
    return Run(**value, curve=[Point(**point) for point in curve])  # type: ignore[arg-type]


def settings(
    problem: Problem,
    *,
    federated: bool,
    alphas: Sequence[float] | None = None,
    local_steps: Sequence[int] | None = None,
) -> list[Setting]:
    """The settings of a problem's race, of some label skews and local steps or of all."""
    if not federated:
        return [Setting()]
    return [
        Setting(alpha, steps)
        for alpha in problem.alphas
        if alphas is None or alpha in alphas
        for steps in problem.local_steps
        if local_steps is None or steps in local_steps
    ]


def seeds_of(problem: Problem, setting: Setting) -> tuple[range, range]:
    """The seeds that rates are tuned on, and those that the results are of."""
    central = setting.alpha is None
    tuning, seeds = (problem.tuning, problem.seeds) if central else problem.federated_seeds
    return range(100, 100 + tuning), range(seeds)

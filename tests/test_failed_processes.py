"""A step that fails in one of several processes ends in all of them, and training goes on alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked_python import ForkedPython
from process_toys import STEPS, in_processes, loss_of, raised, settings_of
from torch import Tensor, nn

from fedspzo import SPZO
from fedspzo.evaluation import in_place, layerwise_block
from fedspzo.journal import digest
from fedspzo.optim import spzo

pytestmark = pytest.mark.slow

LAYERWISE = {"evaluation": "layerwise"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "in place": ("float32", {}),
    "layerwise": ("float32", LAYERWISE),
    "measured": ("measured", LAYERWISE),
    "auto": ("auto", LAYERWISE),
}
"""Cases of process_toys, and settings beside theirs."""

FAILING = [(0, 0), (0, 2), (1, 0), (1, 1), (1, 3), (2, 2)]
"""Steps and the calls of the closure in them that fail."""


def optimizer_of(name: str) -> tuple[nn.Module, SPZO]:
    case, more = RUNS[name]
    model, cut, settings = settings_of(case)
    return model, SPZO(cut(model), **settings, **more, process_group=dist.group.WORLD)


@contextmanager
def failing(place: Any, name: str, call: int) -> Iterator[None]:
    """Let one call of a function, counted from 0, run out of memory."""
    plain, calls = getattr(place, name), iter(range(1000))

    def instead(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise torch.OutOfMemoryError("out of memory")
        return plain(*args, **kwargs)

    setattr(place, name, instead)
    try:
        yield
    finally:
        setattr(place, name, plain)


class Closure:
    """This process's loss, whose n-th call fails in process 1."""

    def __init__(
        self, model: nn.Module, step: int, rank: int, n: int = -1, error: Any = None
    ) -> None:
        self.model, self.step, self.rank = model, step, rank
        self.left = n if rank == 1 else -1
        self.error = error or torch.OutOfMemoryError("out of memory")

    def __call__(self) -> Tensor:
        self.left -= 1
        if self.left == -1:
            raise self.error
        return loss_of(self.model, self.step, self.rank)


def run(name: str, rank: int, failed: bool) -> dict[str, Any]:
    model, optimizer = optimizer_of(name)
    errors = []
    for step in range(STEPS):
        for at, n in FAILING if failed else ():
            if at == step:
                closure = Closure(model, 7, rank, n)
                errors.append(raised(partial(optimizer.step, closure)))
        optimizer.step(Closure(model, step, rank))
    auto = str(optimizer.auto and optimizer.auto.to_dict())
    weights = digest(model.named_parameters())
    return {"errors": errors, "end": [weights, auto, optimizer.steps]}


def failures(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in RUNS:
        found[name] = run(name, rank, failed=True)
        found[f"{name}, undisturbed"] = run(name, rank, failed=False)

    model, optimizer = optimizer_of("layerwise")
    optimizer.step(Closure(model, 0, rank))
    stopped = Closure(model, 1, rank, 1, KeyboardInterrupt("stopped"))
    found["interrupted"] = raised(lambda: optimizer.step(stopped))

    with failing(layerwise_block.LayerwiseBlock, "move", 3 if rank else -1):
        found["moving"] = raised(lambda: optimizer.step(Closure(model, 1, rank)))
    optimizer.step(Closure(model, 1, rank))
    optimizer.step(Closure(model, 2, rank))
    found["moved"] = digest(model.named_parameters())

    model, optimizer = optimizer_of("in place")
    for step in range(4):
        with failing(in_place.InPlaceBlock, "move", step if rank else -1):
            raised(partial(optimizer.step, Closure(model, step, rank)))
        last = raised(partial(optimizer.step, Closure(model, step, rank)))
    found["in place, moved"] = [last, digest(model.named_parameters())]

    model, optimizer = optimizer_of("layerwise")
    with failing(spzo, "make_update", 0 if rank else -1):
        found["update"] = raised(lambda: optimizer.step(Closure(model, 0, rank)))
    before = digest(model.named_parameters())
    found["behind"] = raised(lambda: optimizer.step(Closure(model, 1, rank)))
    found["still behind"] = raised(lambda: optimizer.step(Closure(model, 1, rank)))
    found["behind, weights kept"] = digest(model.named_parameters()) == before
    return found


@pytest.fixture(scope="module")
def failed(python: ForkedPython, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(python, failures, tmp_path_factory.mktemp("failed"))


@pytest.mark.parametrize("name", RUNS)
def test_a_closure_that_raises_in_one_process_ends_the_step_in_all(failed, name):
    others, own = (process[name]["errors"] for process in failed)
    assert own == ["OutOfMemoryError: out of memory"] * len(FAILING)
    for error, (step, _) in zip(others, FAILING, strict=True):
        assert error.startswith(f"RuntimeError: step {step} failed in process 1, whose own error")


@pytest.mark.parametrize("name", RUNS)
def test_processes_that_go_on_after_it_stay_alike(failed, name):
    first, second = (process[name]["end"] for process in failed)
    assert first == second


@pytest.mark.parametrize("name", [name for name in RUNS if name != "in place"])
def test_a_failed_step_leaves_nothing_behind_where_weights_are_not_written(failed, name):
    for process in failed:
        assert process[name]["end"] == process[f"{name}, undisturbed"]["end"]


def test_ctrl_c_in_one_process_ends_the_step_in_all(failed):
    assert failed[0]["interrupted"].startswith("RuntimeError: step 1 failed in process 1,")
    assert failed[1]["interrupted"] == "KeyboardInterrupt: stopped"


def test_a_failure_outside_the_closure_ends_the_step_in_all(failed):
    assert failed[0]["moving"].startswith("RuntimeError: step 1 failed in process 1,")
    assert failed[1]["moving"] == "OutOfMemoryError: out of memory"
    for process in failed:
        assert process["moved"] == process["layerwise, undisturbed"]["end"][0]


def test_weights_that_rounding_has_parted_are_not_trained_on(failed):
    """The processes were at different points when one failed, and moved back from there."""
    (error, first), (again, second) = (process["in place, moved"] for process in failed)
    assert error == again
    assert first == second or "differ in weights" in error


def test_a_process_that_has_fallen_behind_is_found_before_the_next_step(failed):
    assert [process["update"] for process in failed] == ["", "OutOfMemoryError: out of memory"]
    for process in failed:
        assert "(step, evaluation in it: process 0: 1, 0; process 1: 0, 0)" in process["behind"]
        assert "Call `step` as often in every process" in process["behind"]
        assert "differ in steps: [1, 0]" in process["still behind"]
        assert process["behind, weights kept"]

"""Recorded evaluations in a step: they change no bit, and when a step makes none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from auto_lr_toys import newton_run
from families import FAMILIES
from families import loss_of as family_loss
from spzo_toys import IDS, llama, loss_of, weights
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fedspzo
from fedspzo import SPZO, Blocks, split
from fedspzo.estimators.defaults import newton_evaluations
from fedspzo.evaluation.recording import Recording
from fedspzo.optim import evaluations

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_compiled")

EVALUATIONS = ["in_place", "layerwise"]
Loss = Callable[[], Tensor]
Case = Callable[[torch.dtype], tuple[Blocks, Loss]]


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """The recordings that optimizers make."""
    made: list[Recording] = []

    class Noted(Recording):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(evaluations, "Recording", Noted)
    return made


def classifier(dtype: torch.dtype) -> tuple[Blocks, Loss]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    x, y = torch.randn(16, 4, dtype=dtype), torch.randint(3, (16,))
    blocks = split(model, at=-1, example={"input": x})
    return blocks, lambda: F.cross_entropy(model(x).float(), y)


def causal(dtype: torch.dtype) -> tuple[Blocks, Loss]:
    model = llama(dtype)
    return split(model, at="head"), loss_of(model)


def rows(dtype: torch.dtype) -> tuple[Blocks, Loss]:
    model = llama(dtype)
    return split(model, rows=[3, 5]), lambda: F.cross_entropy(
        model(input_ids=IDS).logits[:, -1, [3, 5]].float(), torch.tensor([0, 1])
    )


def encoder(dtype: torch.dtype) -> tuple[Blocks, Loss]:
    torch.manual_seed(0)
    model = FAMILIES["bert-head"]().to(dtype)
    return split(model, at="head"), family_loss(model)


def tied(dtype: torch.dtype) -> tuple[Blocks, Loss]:
    """The head's weight moves with block 1, and the last block is a norm."""
    torch.manual_seed(0)
    model = FAMILIES["qwen2"]().to(dtype)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return split(model, at="head"), family_loss(model)


def micro_batches(dtype: torch.dtype) -> tuple[Blocks, Loss]:
    model = llama(dtype)
    parts = [lambda ids=ids: model(input_ids=ids, labels=ids).loss for ids in IDS.split(1)]
    return split(model, at="head"), fedspzo.accumulate(parts, [11, 7])


def autocast_inside(dtype: torch.dtype) -> tuple[Blocks, Loss]:
    blocks, loss = causal(dtype)

    def cast() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss()

    return blocks, cast


CASES = [classifier, causal, rows, encoder, tied, micro_batches, autocast_inside]


def two_steps(case: Case, dtype: torch.dtype, around: Any, **settings: object) -> list[object]:
    """The reports of two steps and the weights after them."""
    blocks, loss = case(dtype)
    optimizer = SPZO(
        blocks, **{"lr": "auto", "perturbations": (0, 8), "cost_shares": (0.01,), **settings}
    )
    reports = []
    for _ in range(2):
        with around():
            optimizer.step(loss)
        reports.append(optimizer.last_step)
    assert not any(report.skipped for report in reports)
    return [reports, weights(blocks.model)]


def assert_recording_changes_no_bit(
    case: Case,
    dtype: torch.dtype,
    recordings: list[Recording],
    around: Any = nullcontext,
    **settings: object,
) -> None:
    recorded, after = two_steps(case, dtype, around, **settings)
    assert [made.refused for made in recordings] == [None] * len(recordings)
    assert sum(made._checked == Recording.CHECKED for made in recordings) == 2  # one a step
    recordings.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations.Evaluations, "_records", lambda *_: False)
        full, others = two_steps(case, dtype, around, **settings)
    assert not recordings
    assert recorded == full
    assert all(torch.equal(after[name], others[name]) for name in after)


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_losses_gradients_and_updates_are_the_same_to_the_bit(case, dtype, evaluation, recordings):
    assert_recording_changes_no_bit(case, dtype, recordings, evaluation=evaluation)


class EveryOperation(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class EveryFunction(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        EveryOperation,
        EveryFunction,
        lambda: torch.device("cpu"),
    ],
    ids=["autocast", "dispatch-mode", "function-mode", "device"],
)
def test_a_context_around_the_step_changes_no_bit_either(around, evaluation, recordings):
    settings = {"evaluation": evaluation}
    assert_recording_changes_no_bit(causal, torch.float32, recordings, around, **settings)


def test_a_body_that_moves_in_the_same_step_changes_no_bit_either(recordings):
    settings = {"lr": (1e-3, 1e-2), "newton": True, "perturbations": (2, 8)}
    assert_recording_changes_no_bit(causal, torch.float32, recordings, **settings)


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_after_four_evaluations_of_the_closure_a_newton_step_calls_it_no_more(evaluation):
    """At the weights as they are, to record, and twice to check."""
    _, optimizer, loss = newton_run(2, perturbations=(0, 8), evaluation=evaluation)
    calls = []
    optimizer.step(lambda: calls.append(1) or loss())
    report = optimizer.last_step
    assert len(report.losses) == 1 + newton_evaluations(8)
    assert len(calls) == 1 + 1 + Recording.CHECKED


def test_losses_of_a_compiled_model_are_evaluated_in_full(recordings):
    torch._dynamo.reset()
    _, optimizer, loss = newton_run(1, evaluation="in_place")
    assert recordings.pop().refused is None
    calls = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        return lambda *args: calls.append(1) or graph.forward(*args)

    optimizer.step(torch.compile(loss, backend=backend))
    assert len(calls) >= len(optimizer.last_step.losses)
    assert recordings.pop().refused == "torch.compile has compiled code, which may round otherwise"


def test_several_processes_or_a_block_beyond_the_buffer_are_evaluated_in_full(recordings):
    newton_run(1)
    assert recordings
    recordings.clear()
    newton_run(1, evaluation="layerwise", scratch_bytes=64)
    assert not recordings
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        newton_run(1, process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    assert not recordings

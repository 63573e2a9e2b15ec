"""Recorded evaluations: only operations that depend on the moved weights run again."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from auto_lr_toys import newton_run
from families import FAMILIES
from families import loss_of as family_loss
from spzo_toys import IDS, close, llama, loss_of, same, weights
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fedspzo
from fedspzo import SPZO, Blocks, split
from fedspzo.estimators.defaults import newton_evaluations
from fedspzo.evaluation import recording
from fedspzo.evaluation.recording import Recording
from fedspzo.optim import evaluations

pytestmark = pytest.mark.usefixtures("one_thread")

EVALUATIONS = ["in_place", "layerwise"]
Loss = Callable[[], Tensor]
Case = Callable[[torch.dtype], tuple[Blocks, Loss]]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    """As in a new process; other tests may have compiled a model in this one."""
    torch._dynamo.utils.counters.clear()


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
    assert len(calls) == 1 + 1 + Recording.CHECKED + len(report.trials)


def moved_along(loss: Loss, moved: nn.Parameter, count: int = 7) -> tuple[Recording, list[bool]]:
    """A recording of a loss at several places, and whether each is that of a full evaluation."""
    recorded = Recording([moved])
    equal = []
    with torch.no_grad():
        for _ in range(count):
            moved += 0.1 * torch.sign(moved)
            torch.clear_autocast_cache()
            found = recorded.evaluated(loss)
            torch.clear_autocast_cache()
            equal.append(torch.equal(found, loss()))
    return recorded, equal


MEMORY = torch.zeros(8, 3)


@torch.library.custom_op("fedspzo_tests::allocated", mutates_args=())
def allocated(like: Tensor) -> Tensor:
    """Return memory that is not written, and has what was in it when it was last used."""
    return torch.from_dlpack(MEMORY)


class Tail:
    """A last block, its fixed input, and losses that use them in many ways."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.hidden = torch.randn(8, 4, generator=generator)
        self.labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        self.buffer = torch.zeros(8, 3)
        self.shared = self.weight.detach().numpy()

    def logits(self) -> Tensor:
        return F.linear(self.hidden, self.weight)

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), self.labels)

    # can be run again

    def in_place(self) -> Tensor:
        logits = self.logits().relu_()
        logits[:, 0] += 1
        logits.view(-1)[::2].mul_(2)
        return self.loss(logits)

    def several_results(self) -> Tensor:
        first, *_, last = self.logits().split(1, dim=1)
        values, _ = torch.topk(self.logits(), 2)
        return torch.cat([first, last, values], dim=1).sum()

    def result_as_keyword(self) -> Tensor:
        logits = self.logits()
        return self.loss(torch.mul(logits, 2, out=torch.empty_like(logits)))

    def results_in_a_list(self) -> Tensor:
        return torch._foreach_norm([self.logits(), self.weight, self.hidden])[0].sum()

    def chosen_by_a_constant_mask(self) -> Tensor:
        return self.logits()[self.labels == 1].sum()

    def own_memory(self) -> Tensor:
        return self.loss(self.logits()) + self.weight.data.square().sum()

    def norm(self) -> Tensor:
        return self.loss(F.layer_norm(self.logits(), (3,)))

    def inference(self) -> Tensor:
        with torch.inference_mode():
            return self.loss(F.linear(self.hidden, self.weight).relu_()).clone()

    def cast(self) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.loss(self.logits())

    def no_cast_inside_a_cast(self) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = self.logits()
            with torch.autocast("cpu", enabled=False):
                return self.loss(cast + self.logits())

    def vmapped(self) -> Tensor:
        one = torch.vmap(lambda h, y: F.cross_entropy(self.weight @ h, y))
        return one(self.hidden, self.labels).mean()

    def with_a_gradient(self) -> Tensor:
        with torch.enable_grad():
            hidden = self.hidden.clone().requires_grad_()
            loss = self.loss(F.linear(hidden, self.weight))
            (gradient,) = torch.autograd.grad(loss, hidden)
        return (loss + gradient.square().sum()).detach()

    def beside_a_sparse_matrix(self) -> Tensor:
        return self.loss(torch.sparse.mm(torch.eye(8).to_sparse(), self.logits().float()))

    # cannot

    def read_by_item(self) -> Tensor:
        loss = self.loss(self.logits())
        return loss * 2 if loss.item() > 1 else loss

    def read_by_tolist(self) -> Tensor:
        logits = self.logits()
        return self.loss(logits) * (2 if max(logits[0].tolist()) > 1 else 1)

    def read_by_numpy(self) -> Tensor:
        return self.loss(self.logits()) + float(np.abs(self.logits().numpy()).max())

    def made_anew(self) -> Tensor:
        return self.loss(self.logits()) + torch.tensor([self.weight.sum(), 1.0]).mean()

    def computed_by_numpy(self) -> Tensor:
        return torch.tensor(float((self.hidden.numpy() @ self.shared.T).sum()))

    def random(self) -> Tensor:
        torch.manual_seed(0)
        return self.loss(F.dropout(self.logits(), training=True))

    def chosen_by_values(self) -> Tensor:
        return self.logits().flatten()[self.logits().flatten().nonzero()].sum()

    def chosen_by_a_mask_of_values(self) -> Tensor:
        logits = self.logits()
        return logits[logits > 0].mean()

    def chosen_by_values_in_inference(self) -> Tensor:
        with torch.inference_mode():
            logits = self.logits()
            (chosen,) = torch.where(logits[:, 0] > 0)
            return (logits.index_select(0, chosen).sum() / len(chosen)).clone()

    def written_to_a_constant(self) -> Tensor:
        self.buffer.zero_()
        self.buffer += self.logits()
        return self.loss(self.buffer)

    def written_to_what_was_read(self) -> Tensor:
        buffer = self.hidden.clone()
        first = F.linear(buffer, self.weight)
        buffer.mul_(2)
        return self.loss(first + F.linear(buffer, self.weight))

    def written_to_a_view_of_what_was_read(self) -> Tensor:
        buffer = self.hidden.clone()
        first = F.linear(buffer, self.weight)
        buffer[0].mul_(2)
        return self.loss(first + F.linear(buffer, self.weight))

    def branching(self) -> Tensor:
        logits = self.logits()
        larger = logits.sum() > 0
        return torch.cond(larger, lambda x: x.sum(), lambda x: x.mean(), (logits,))

    # what only the checks can see

    def hidden_from_torch(self) -> Tensor:
        return self.loss(self.logits()) + float(self.shared.sum())

    def written_outside_torch(self) -> Tensor:
        """As by a kernel of another library, into memory that an allocator gives again."""
        logits = self.logits()
        result = torch.ops.fedspzo_tests.allocated(logits)
        with torch._C.DisableTorchFunction():
            np.copyto(result.numpy(), logits.numpy())
        return self.loss(result)


@pytest.mark.parametrize(
    "way",
    [
        Tail.in_place,
        Tail.several_results,
        Tail.result_as_keyword,
        Tail.results_in_a_list,
        Tail.chosen_by_a_constant_mask,
        Tail.own_memory,
        Tail.norm,
        Tail.inference,
        Tail.cast,
        Tail.no_cast_inside_a_cast,
        Tail.vmapped,
        Tail.with_a_gradient,
        Tail.beside_a_sparse_matrix,
    ],
    ids=lambda way: way.__name__,
)
@pytest.mark.parametrize("outer", [False, True], ids=["", "autocast-around"])
def test_operations_are_run_again_to_the_bit(way, outer):
    tail = Tail()
    calls = []
    with torch.autocast("cpu", dtype=torch.bfloat16) if outer else nullcontext():
        recorded, equal = moved_along(lambda: calls.append(1) or way(tail), tail.weight)
    assert recorded.refused is None
    assert all(equal)
    assert len(calls) == 1 + Recording.CHECKED + len(equal)  # the last to compare with


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (Tail.read_by_item, "_local_scalar_dense.* reads a value"),
        (Tail.read_by_tolist, "tolist reads a value"),
        (Tail.read_by_numpy, "numpy reads a value"),
        (Tail.made_anew, "tensor reads a value"),
        (Tail.computed_by_numpy, "does not come from the weights"),
        (Tail.random, "may draw random numbers"),
        (Tail.chosen_by_values, "nonzero.* whose shape depends on values"),
        (Tail.chosen_by_values_in_inference, "nonzero.* whose shape depends on values"),
        (Tail.chosen_by_a_mask_of_values, "index.* whose shape depends on values"),
        (Tail.written_to_a_constant, "changes a tensor that it would find changed"),
        (Tail.written_to_what_was_read, "mul_.* changes what an operation has read"),
        (Tail.written_to_a_view_of_what_was_read, "mul_.* changes what an operation has read"),
        (Tail.branching, "cond is not a single operation"),
        (Tail.hidden_from_torch, "by more than torch's operations"),
        (Tail.written_outside_torch, "by more than torch's operations"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_run_again_is_evaluated_in_full(way, why):
    tail = Tail()
    calls = []
    recorded, equal = moved_along(lambda: calls.append(1) or way(tail), tail.weight)
    assert all(equal)
    assert len(calls) == 2 * len(equal)
    with pytest.raises(RuntimeError, match=why):
        raise RuntimeError(recorded.refused)


class Results(TorchDispatchMode):
    """Notes the results of all operations, and keeps none."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Callable[[], Tensor | None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.made += [weakref.ref(x) for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result


def test_results_are_freed_when_a_recorded_evaluation_is_over():
    tail = Tail()
    recorded, _ = moved_along(tail.in_place, tail.weight)
    with torch.no_grad(), Results() as results:
        loss = recorded.evaluated(tail.in_place)
    living = [made() for made in results.made if made() is not None]
    assert len(results.made) > 8
    assert len(living) == 1
    assert living[0] is loss


@pytest.mark.parametrize("others", [0, 1])
def test_what_recorded_evaluations_read_is_freed_before_others_are_made(others):
    torch.manual_seed(0)
    body, head = nn.Linear(4, 4), nn.Linear(4, 3)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    model = nn.Sequential(body, head)
    optimizer = SPZO(
        split(model, at=-1, example={"input": x}),
        lr=(1e-3, 1e-2),
        newton=True,
        perturbations=(others, 8),
        cost_shares=(0.01,),
    )
    living: list[int] = []
    read: list[weakref.ref[Tensor]] = []

    def loss() -> Tensor:
        living.append(sum(ref() is not None for ref in read))
        hidden = body(x).clone()
        read.append(weakref.ref(hidden))
        return F.cross_entropy(head(hidden), y)

    optimizer.step(loss)
    living.clear()
    optimizer.step(loss)
    # at theta, to record, and twice to check; then the body and the trial
    assert living[:4] == [0, 0, 1, 1]
    assert len(living) == 4 + others + len(optimizer.last_step.trials) > 4
    assert set(living[4:]) == {0}


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("struck", [1, 9])
def test_ctrl_c_in_a_recorded_evaluation_puts_everything_back(monkeypatch, evaluation, struck):
    model, optimizer, loss = newton_run(2, evaluation=evaluation)
    before, steps = weights(model), optimizer.steps
    run = recording._Recorded.__call__
    left = [struck]

    def interrupted(self: Any) -> Tensor:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return run(self)

    monkeypatch.setattr(recording._Recorded, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss)
    assert left[0] == 0  # it did not wait for the step's end
    assert same(model, before) if evaluation == "layerwise" else close(model, before)
    assert optimizer.steps == steps
    optimizer.step(loss)
    assert optimizer.steps == steps + 1


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("failing", [1, 2])  # while it is recorded, and while it is checked
def test_a_closure_that_fails_fails_the_step_and_puts_everything_back(evaluation, failing):
    model, optimizer, loss = newton_run(2, evaluation=evaluation)
    before = weights(model)
    calls: Iterator[int] = iter(range(100))

    def fails() -> Tensor:
        if next(calls) == failing:
            raise ValueError("out of data")
        return loss()

    with pytest.raises(ValueError, match="out of data"):
        optimizer.step(fails)
    assert same(model, before) if evaluation == "layerwise" else close(model, before)
    assert optimizer.step(loss) < float("inf")


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

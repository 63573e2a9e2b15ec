"""Recorded operations: which of them run again, to the bit, and which are refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedspzo.evaluation.recording import Recording

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_compiled")

Loss = Callable[[], Tensor]


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

"""What users of torch do with optimizers and models, and SPZO has to take or refuse in words."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedspzo import SPZO, Blocks, split
from fedspzo.journal.records import apply
from fedspzo.journal.steps import step_record
from fedspzo.privacy import Mechanism, Privacy

IDS = torch.arange(48).reshape(8, 6) % 32
LABELS = IDS.sum(1) % 4


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(32, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def loss_of(model: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(IDS).float(), LABELS)


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_step_inside_autocast_sees_its_weights_move(evaluation):
    """Autocast keeps copies of the weights until its outermost block ends."""
    losses = []
    for step_inside in (False, True):
        model = Net()
        optimizer = SPZO(split(model), lr=1e-3, perturbations=(2, 4), evaluation=evaluation)
        cast = torch.autocast("cpu", torch.bfloat16)
        if step_inside:
            with cast:
                optimizer.step(loss_of(model))
        else:
            optimizer.step(cast(loss_of(model)))
        losses.append(optimizer.last_step.losses)
    assert losses[0] == losses[1]
    assert len(set(losses[1])) > 4


@pytest.mark.slow
@pytest.mark.parametrize("shares", [None, (0.02,)])
def test_a_compiled_model_stays_compiled(shares):
    runs = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        def compiled(*args: Any) -> Any:
            runs.append(1)
            return graph.forward(*args)

        return compiled

    torch._dynamo.reset()
    model, plain = torch.compile(Net(), backend=backend), Net()
    settings: dict[str, Any] = {"lr": 1e-3, "perturbations": (2, 4), "cost_shares": shares}
    optimizer, other = SPZO(split(model), **settings), SPZO(split(plain), **settings)
    for _ in range(2):
        optimizer.step(loss_of(model))
        other.step(loss_of(plain))
        assert optimizer.last_step.losses == other.last_step.losses
    assert len(runs) == 2 * len(other.last_step.losses)  # all but the measurement's
    with torch.no_grad():
        model(IDS)
    assert len(runs) == 2 * len(other.last_step.losses) + 1


def test_layerwise_evaluation_runs_a_compiled_model_as_it_was_written():
    """A compiler cannot trace virtual parameters; outside the steps the model stays compiled."""
    runs = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        return lambda *args: runs.append(1) or graph.forward(*args)

    torch._dynamo.reset()
    model, plain = torch.compile(Net(), backend=backend), Net()
    settings: dict[str, Any] = {"lr": 1e-3, "perturbations": (2, 4), "evaluation": "layerwise"}
    optimizer, other = SPZO(split(model), **settings), SPZO(split(plain), **settings)
    for number in range(1, 3):
        optimizer.step(loss_of(model))
        other.step(loss_of(plain))
        assert optimizer.last_step.losses == other.last_step.losses
        with torch.no_grad():
            model(IDS)
        assert len(runs) == number


def test_a_number_is_a_loss_whatever_torchs_default_dtype_is():
    model = Net()
    optimizer = SPZO(split(model), lr=1e-3, perturbations=(2, 4), cost_shares=(0.02,))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        optimizer.step(lambda: loss_of(model)().item())
    finally:
        torch.set_default_dtype(before)
    assert optimizer.last_step.losses[0] == loss_of(Net())().item()


@pytest.mark.parametrize("lr", [1e-3, "auto"])
@pytest.mark.parametrize("as_number", [False, True])
def test_a_count_of_errors_is_a_loss(lr, as_number):
    model = Net()
    optimizer = SPZO(split(model), lr=lr, perturbations=(2, 4), eps=0.05)

    def errors() -> Tensor | int:
        count = (model(IDS).argmax(-1) != LABELS).sum()
        return int(count) if as_number else count

    assert optimizer.step(errors) == (Net()(IDS).argmax(-1) != LABELS).sum()


def test_a_closure_that_calls_backward_is_told():
    model = Net()

    def closure() -> Tensor:
        loss = loss_of(model)()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError) as caught:
        SPZO(split(model), lr=1e-3, perturbations=(2, 4), cost_shares=(0.1,)).step(closure)
    assert any("calls no backward()" in note for note in caught.value.__notes__)


def test_a_group_with_a_rate_of_its_own_has_that():
    groups = split(Net()).param_groups()
    own = [{**groups[0], "lr": 1e-3}, {**groups[1], "lr": 1e-4}]
    optimizer = SPZO(own, estimator="anchored", perturbations=(2, 8))
    optimizer.step(lambda: own[0]["params"][0][1].square().sum())
    assert optimizer.last_step.lr == (1e-3, 1e-4)
    half = [{**groups[0], "lr": 1e-3}, groups[1]]  # the other one by the rule, from the default
    optimizer = SPZO(half, 1e-2, estimator="anchored", perturbations=(2, 8))
    optimizer.step(lambda: half[0]["params"][0][1].square().sum())
    assert optimizer.last_step.lr == pytest.approx((1e-3, 4e-2))


def test_a_group_is_added_to_bare_groups_and_not_to_a_networks_blocks():
    model, extra = Net(), nn.Parameter(torch.ones(3))
    optimizer = SPZO(split(model), lr=1e-3, perturbations=(2, 4))
    for _ in range(2):  # before its first step and after it
        with pytest.raises(ValueError, match="split the model then"):
            optimizer.add_param_group({"params": [("extra", extra)]})
        optimizer.step(loss_of(model))
    assert len(optimizer.param_groups) == 2

    mezo = SPZO(model.named_parameters(), lr=1e-3, perturbations=2)
    with pytest.raises(ValueError, match="perturbations is 1, but the other groups have 2"):
        mezo.add_param_group({"params": [("extra", extra)], "perturbations": 1})
    mezo.add_param_group({"params": [("extra", extra)]})
    mezo.step(lambda: loss_of(model)() + extra.square().sum())
    assert not torch.equal(extra, torch.ones(3))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_an_optimizer_is_not_copied(copied):
    with pytest.raises(TypeError, match=r"keep its state_dict\(\)"):
        copied(SPZO(split(Net())))


def test_a_model_is_not_a_list_of_parameters():
    with pytest.raises(TypeError, match=r"params is a Net; pass split\(model\)"):
        SPZO(Net())


def test_a_state_that_is_refused_changes_nothing():
    model = Net()
    found = SPZO(split(model), lr="auto", perturbations=(2, 4))
    found.step(loss_of(model))
    state = found.state_dict()
    other = SPZO(split(model), lr=1e-3, perturbations=(2, 4))
    broken = {**state, "spzo": {**state["spzo"], "auto": {"steps": 1}}}
    with pytest.raises(ValueError, match="another release"):
        other.load_state_dict(broken)
    assert [group["lr"] for group in other.param_groups] == [1e-3, 1e-3]

    privacy = Mechanism(Privacy(clip=1, noise_multiplier=1), 8)
    private = SPZO(split(model), lr=1e-3, perturbations=(2, 4), privacy=privacy)
    with pytest.raises(ValueError, match="losses that are not private"):
        private.load_state_dict(state)
    assert private.auto is None


def test_a_step_that_adds_nothing_is_no_term_and_keeps_negative_zeros():
    """As a warm-up from 0 has, on pruned weights."""
    model = Net()
    with torch.no_grad():
        model.head.weight.mul_(torch.tensor([1.0, -0.0] * 4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks = Blocks.single(model)
    optimizer = SPZO(blocks, lr=1e-3, evaluation="layerwise")
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(loss_of(model))
    record = step_record(optimizer.last_step, 0)
    assert not record.terms[0].seeds.size
    apply(record, [list(before.items())])
    for name, parameter in model.named_parameters():
        kept, replayed = (t.detach().view(torch.int32) for t in (parameter, before[name]))
        assert torch.equal(kept, replayed), name

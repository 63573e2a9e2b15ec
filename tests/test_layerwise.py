"""Layerwise evaluation: the losses of moved weights, which no one moves."""

from __future__ import annotations

import warnings

import accelerate
import peft
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, loss_of
from layerwise_toys import (
    LOW,
    Keeping,
    Seen,
    Small,
    bits,
    by_copies,
    loss_on,
    step_at_no_rate,
    unchanged,
)
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks, split
from fedspzo.optim.spzo import SPZO


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_moved_weights_bit_for_bit(family, adapted):
    """Embeddings by rows, tied heads, parameters as inputs, adapters, capture and replay."""
    model = FAMILIES[family]()
    loss = loss_of(model)
    if adapted:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    model, before = model.to(LOW), bits(model.to(LOW))
    parameters = [(module, dict(module._parameters)) for module in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing strays, everything fits
        # adapters, which begin at 0, may move a loss by less than bfloat16 shows
        warnings.filterwarnings("ignore", "all 7 losses of step 0 are")
        optimizer = step_at_no_rate(split(model, -1), loss, perturbations=(1, 2))
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)
    assert unchanged(model, before)
    for module, own in parameters:
        assert list(module._parameters.items()) == list(own.items())
        assert all(module._parameters[name] is p for name, p in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_bit_is_the_starts_after_1000_steps_at_no_learning_rate(dtype):
    model = Small(64, 8).to(dtype)
    before = bits(model)
    ids = torch.arange(6).reshape(2, 3)
    optimizer = SPZO(Blocks.single(model), eps=1e-2, evaluation="layerwise")
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(1000):
        optimizer.step(loss_on(model, ids))
    assert optimizer.last_step.gradients[0][0] != 0
    assert optimizer.last_step.coefficients[0][0] == 0
    assert unchanged(model, before)


@pytest.mark.slow
def test_killing_a_step_at_any_operation_leaves_every_bit():
    model = Small().to(LOW)
    before, own = bits(model), [dict(module._parameters) for module in model.modules()]
    loss = loss_on(model, torch.arange(6).reshape(2, 3))

    def step(die_at: int) -> int:
        """One step, killed at an operation of its evaluations; their number."""
        left, settings = die_at, {"perturbations": (1, 2), "cost_shares": (0.5,)}
        optimizer = SPZO(split(model, -1), scratch_bytes=1 << 12, **settings)

        def watched() -> Tensor:
            nonlocal left
            with Seen(left) as seen:
                try:
                    return loss()
                finally:
                    left -= seen.count

        optimizer.step(watched)
        return die_at - left

    total = step(1_000_000)
    assert total > 100
    assert not unchanged(model, before)
    before = bits(model)
    for die_at in range(total):
        with pytest.raises(KeyboardInterrupt):
            step(die_at)
        assert unchanged(model, before), die_at
        now = [dict(module._parameters) for module in model.modules()]
        assert all(a[name] is b[name] for a, b in zip(own, now, strict=True) for name in a)


def test_parameters_used_past_their_modules_are_named_and_moved_from_a_copy():
    model, ids = Keeping().to(LOW), torch.arange(6).reshape(2, 3)
    model.kept = [model.norm.weight, model.layers[1].bias]
    before, loss = bits(model), loss_on(model, ids)
    blocks = split(model, 1, example={"ids": ids})
    with pytest.warns(UserWarning, match="'layers.1.bias', 'norm.weight' are used past .* a copy"):
        optimizer = step_at_no_rate(blocks, loss, perturbations=(1, 2), cost_shares=(0.5,))
    report = optimizer.last_step
    assert list(report.losses) == by_copies(optimizer, model, loss)
    assert unchanged(model, before)
    # the first step's check evaluates in full and from the cut
    assert optimizer.forwards == report.forwards + 1.5 + 1  # the first evaluation was done again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(loss)
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)
    assert optimizer.forwards == 2 * report.forwards + 1.5 + 1
    assert unchanged(model, before)


def test_views_and_foreign_use_of_weights_are_perturbed():
    """nn.MultiheadAttention cuts one weight in three, and uses its child's without calling it."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(32, 16, max_norm=1.0)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(16, 2, 24, batch_first=True) for _ in range(2)
            )
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.weights = nn.ParameterList([torch.randn(16, 32)])

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            for layer in self.layers:
                x = layer(x)
            return x @ self.weights[0][:, :].T.T * self.scale.exp() + self.weights[0].data.mean()

    model, ids = Attending(), torch.arange(6).reshape(2, 3)
    loss = loss_on(model, ids)
    with torch.no_grad():
        loss()  # the embedding's own renormalisation
    before = bits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = step_at_no_rate(Blocks.single(model), loss)
    assert unchanged(model, before)
    # its fast path, which sees no virtual parameters, adds in another order
    assert list(optimizer.last_step.losses) == pytest.approx(
        by_copies(optimizer, model, loss), rel=1e-5
    )


def test_hooks_of_accelerate_and_forwards_of_instances_stay():
    model = Small().to(LOW)
    accelerate.hooks.add_hook_to_module(model.layers[0], accelerate.hooks.ModelHook())
    hooked = model.layers[0].forward
    loss = loss_on(model, torch.arange(6).reshape(2, 3))
    optimizer = step_at_no_rate(split(model, -1), loss, perturbations=(1, 2))
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)
    assert model.layers[0].forward is hooked


def test_two_parameters_over_one_memory_are_one():
    model = Small().to(LOW)
    model.head = nn.Linear(16, 512, bias=False, dtype=LOW)
    model.head.weight = nn.Parameter(model.embed.weight.detach())
    ids = torch.arange(6).reshape(2, 3)

    def loss() -> Tensor:
        x = model.layers[1](model.layers[0](model.embed(ids)))
        return F.cross_entropy(model.head(x).float().flatten(0, 1), ids.flatten())

    optimizer = step_at_no_rate(Blocks.single(model), loss)
    assert "head.weight" not in optimizer.param_groups[0]["param_names"]
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)
    assert model.head.weight is not model.embed.weight
    assert model.head.weight.data_ptr() == model.embed.weight.data_ptr()


def test_a_kernel_that_asks_for_an_address_is_told_what_to_pass():
    model = Small()
    loss = loss_on(model, torch.arange(6).reshape(2, 3))
    with pytest.raises(RuntimeError, match=r"'norm.weight'.*pass evaluation='in_place'"):
        step_at_no_rate(
            split(model, -1), lambda: loss() + model.norm.weight.data_ptr(), cost_shares=(0.5,)
        )


def test_weights_of_any_layout_and_empty_batches_are_taken():
    model = Small().to(LOW)
    model.layers[0].weight = nn.Parameter(model.layers[0].weight.detach().clone().T)
    ids = torch.arange(6).reshape(2, 3)

    def loss() -> Tensor:
        scores = model(ids) * model.layers[0].weight.T.sum() + model(ids[:, :0]).sum()
        return scores.float().square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = step_at_no_rate(
            split(model, -1), loss, perturbations=(1, 2), scratch_bytes=1 << 10
        )
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)


class Prompted(nn.Module):
    """A learned prompt goes through a linear layer, as in p-tuning."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prompt = nn.Parameter(torch.randn(5, 8))
        self.reparametrized = nn.Linear(8, 8, bias=False)

    def forward(self) -> Tensor:
        return self.reparametrized(self.prompt).square().mean()


def test_a_parameter_that_is_a_linear_layers_input_lies_beside_its_weight():
    model = Prompted()
    optimizer = SPZO(Blocks.single(model), evaluation="layerwise", perturbations=3, lr=0.0)
    for _ in range(2):
        optimizer.step(model)
        assert list(optimizer.last_step.losses) == by_copies(optimizer, model, model)


def test_a_loss_on_gradients_of_the_input_is_that_of_moved_weights():
    """As forces and gradient penalties are: a graph keeps weights until it is gone backwards."""
    layers = (nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
    model, points = nn.Sequential(*layers), torch.randn(32, 32)

    def loss() -> Tensor:
        with torch.enable_grad():
            x = points.clone().requires_grad_()
            (force,) = torch.autograd.grad(model(x).sum(), x)
        return (force - 1).square().mean()

    optimizer = step_at_no_rate(Blocks.single(model), loss, scratch_bytes=1 << 16)
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)


class Products(nn.Module):
    """A weight that is a Kronecker product of two, as LoKr adapters have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.a, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(8, 8))
        self.c = nn.Parameter(torch.randn(4, 32))

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.unsafe_split(self.c, 2)
        x = F.linear(torch.tanh(self.first(x)), torch.kron(self.a, self.b))
        return F.linear(x, halves[0]) * F.linear(x, halves[1])


def test_operations_whose_results_are_views_unsaid_have_copies_of_their_own():
    model, x = Products(), torch.randn(5, 32)
    loss = lambda: model(x).square().mean()  # noqa: E731
    optimizer = step_at_no_rate(Blocks.single(model), loss)
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)


class Beside(nn.Module):
    """Keeps weights of its own, which meet virtual parameters in one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.kept = [self.other.weight, self.other.bias]

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.layer.weight, self.kept[1])
        x = F.linear(x, self.kept[0], self.layer.bias)
        return x * (self.scale * self.kept[1])


def test_a_weight_past_its_module_is_found_beside_virtual_parameters():
    model, x = Beside(), torch.randn(5, 4)
    loss = lambda: model(x).square().mean()  # noqa: E731
    with pytest.warns(UserWarning, match=r"'other.bias', 'other.weight' are used past"):
        optimizer = step_at_no_rate(Blocks.single(model), loss)
    assert list(optimizer.last_step.losses) == by_copies(optimizer, model, loss)

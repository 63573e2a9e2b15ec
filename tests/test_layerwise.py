"""Layerwise evaluation: the losses of moved weights, which no one moves."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import accelerate
import peft
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, loss_of
from memory import peak_bytes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedspzo.blocks.cut import Blocks, split
from fedspzo.estimators import find
from fedspzo.evaluation.in_place import InPlaceBlock
from fedspzo.optim.param_groups import named
from fedspzo.optim.spzo import SPZO

LOW = torch.bfloat16


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@torch.no_grad()
def by_copies(optimizer: SPZO, model: nn.Module, loss: Callable[[], Tensor]) -> list[float]:
    """The last step's losses once more: full forwards at weights moved in place from a copy."""
    groups = optimizer.param_groups
    estimator = find(optimizer.estimator)(
        sides=optimizer.sides,
        perturbations=tuple(group["perturbations"] for group in groups),
    )
    blocks = [InPlaceBlock(named(group), snapshot=True) for group in groups]
    model.eval()
    values = []
    for point in estimator.points():
        for block, group, seeds, offset in zip(
            blocks, groups, optimizer.last_step.seeds, point, strict=True
        ):
            eps = torch.tensor(group["eps"]).item()
            block.move({seeds[p]: sign * eps for p, sign in offset})
        values.append(loss().item())
    for block in blocks:
        block.restore()
    return values


def step_at_no_rate(blocks: Blocks, loss: Callable[[], Tensor], **settings: object) -> SPZO:
    optimizer = SPZO(blocks, evaluation="layerwise", **settings)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(loss)
    return optimizer


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
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt-projected", "roberta", "t5-encoder"])
def test_what_does_not_fit_the_scratch_buffer_goes_by_rows(family):
    """Room for a layer's weights, 28 rows of the embedding's 48 and of the head's."""
    model = FAMILIES[family]().to(LOW)
    loss = loss_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        optimizer = step_at_no_rate(
            split(model, -1), loss, perturbations=(1, 2), scratch_bytes=28 * 32 + 128
        )
    # a head's rows are the same sums, which a BLAS may add in another order
    assert list(optimizer.last_step.losses) == pytest.approx(
        by_copies(optimizer, model, loss), rel=1e-3
    )


class Seen(TorchDispatchMode):
    """How much the op has perturbed, and, on demand, a death at the n-th operation."""

    def __init__(self, die_at: int = -1) -> None:
        super().__init__()
        self.elements, self.count, self.die_at = [], 0, die_at

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.count == self.die_at:
            raise KeyboardInterrupt
        self.count += 1
        if func is torch.ops.fedspzo.perturb_out.default:
            self.elements.append(sum(tensor.numel() for tensor in args[1]))
        elif func is torch.ops.fedspzo.perturb_rows.default:
            self.elements.append(args[2].numel())
        assert func is not torch.ops.fedspzo.perturb_.default  # no copy that is then perturbed
        return func(*args, **(kwargs or {}))


class Small(nn.Module):
    """An embedding that is the head too, and two layers."""

    def __init__(self, vocabulary: int = 512, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return F.linear(self.norm(x), self.embed.weight)


def loss_on(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())


def test_an_embedding_is_perturbed_in_the_rows_of_the_batch_alone():
    model = nn.Sequential(nn.Embedding(512, 16), nn.Linear(16, 16)).to(LOW)
    ids = torch.tensor([[7, 8, 9, 300], [8, 7, 7, 511]])
    optimizer = SPZO(Blocks.single(model), scratch_bytes=1 << 10)
    losses = []

    def loss() -> Tensor:
        with Seen() as seen:
            value = model(ids).float().square().mean()
        assert seen.elements == [8 * 16, 16 * 16 + 16]
        losses.append(value)
        return value

    optimizer.step(loss)
    assert len(losses) == 2 + 1  # the first step makes its first evaluation twice


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


@pytest.mark.parametrize("dtype", [torch.float32, LOW], ids=str)
def test_peak_memory_stays_within_the_bound(dtype):
    """Beyond a step in place: no more than the scratch buffer and a part of the head's output."""
    model = Small(vocabulary=1 << 14, width=64).to(dtype)
    ids = torch.arange(8).reshape(2, 4) * 100
    weights = sum(p.nbytes for p in model.parameters())
    peaks = {}
    for evaluation, size in (("in_place", None), ("layerwise", 64 << 10), ("layerwise", 1 << 20)):
        optimizer = SPZO(
            split(model, -1), 1e-6, evaluation=evaluation, scratch_bytes=size, cost_shares=(0.5,)
        )
        loss = loss_on(model, ids)
        optimizer.step(loss)
        peaks[size] = peak_bytes(lambda o=optimizer, loss=loss: o.step(loss))
    for size in (64 << 10, 1 << 20):
        part = ids.numel() * size // 64  # tokens, times the rows of the head that fit
        extra = peaks[size] - peaks[None]
        assert size // 2 < extra <= size + part + 4096
    by_copy = SPZO(model.named_parameters(), 1e-6, evaluation="layerwise")
    with pytest.warns(UserWarning, match="came without their model"):
        by_copy.step(loss)
    assert peak_bytes(lambda: by_copy.step(loss)) > weights


class FewWords(Small):
    """Takes a few rows of the embeddings as its head, as a prompt does."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.norm(self.embed(ids)), self.embed.weight[torch.tensor([5, -3, 5])])


def test_rows_that_a_model_takes_of_a_weight_are_perturbed_alone():
    model = FewWords(vocabulary=1 << 14, width=64)
    ids = torch.arange(8).reshape(2, 4)
    losses = {}

    def loss() -> Tensor:
        return model(ids).square().mean()

    for evaluation in ("in_place", "layerwise"):
        optimizer = SPZO(Blocks.single(model), 0.0, evaluation=evaluation, sides="one")
        optimizer.step(loss)
        losses[evaluation] = optimizer.last_step.losses
    assert losses["layerwise"] == losses["in_place"]
    optimizer.scratch_bytes = 64 << 10
    assert peak_bytes(lambda: optimizer.step(loss)) < model.embed.weight.nbytes / 8


class Keeping(Small):
    """Keeps a list of weights of its own, so that its modules' places for them do not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.norm.weight, self.layers[1].bias]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x + self.kept[1]).tanh()
        return F.linear(x * self.kept[0], self.embed.weight)


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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"evaluation": "exact"}, "evaluation is 'exact'; pass 'in_place' or 'layerwise'"),
        ({"scratch_bytes": 0}, "scratch_bytes is 0; pass an int of at least 1"),
    ],
)
def test_bad_settings_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        SPZO(split(Small(), -1), **settings)


def test_the_bound_is_the_largest_layers_weights_or_what_was_passed():
    wide = Small(width=1024)
    assert SPZO(split(wide, -1)).scratch_bytes == 4 * (1024 * 1024 + 1024)
    assert SPZO(Blocks.single(wide)).scratch_bytes == 4 * (1024 * 1024 + 1024)
    assert SPZO(split(Small(), -1)).scratch_bytes == 1 << 20
    assert SPZO(split(Small(), -1), scratch_bytes=5000).scratch_bytes == 5000
    model = Small()
    loss = loss_on(model, torch.arange(6).reshape(2, 3))
    with pytest.warns(UserWarning, match=r"'norm.weight' takes 128 bytes.*\(100\)"):
        step_at_no_rate(Blocks.single(model), loss, scratch_bytes=100)


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

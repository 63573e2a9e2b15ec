"""Frozen layers before the first one that trains run once a step."""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
import torch
from families import FAMILIES, LAYERS, assert_split_is_exact, loss_of, names
from federated_toys import ToyTask, toy, toy_data
from torch import Tensor, nn

from fedspzo import federated
from fedspzo.blocks.cut import Blocks, split
from fedspzo.federated import FederationConfig, OptimizerConfig
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


def frozen_before(layer: int) -> nn.Module:
    """A model whose first layers and embeddings do not train."""
    torch.manual_seed(0)
    model = FAMILIES["llama"]()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[:layer].requires_grad_(False)
    if layer == LAYERS:
        model.model.norm.requires_grad_(False)
    return model


def counted(model: nn.Module) -> list[int]:
    """Return how often each layer's attention runs from now on."""
    calls = [0] * LAYERS
    for number, layer in enumerate(model.model.layers):

        def count(*_: object, number: int = number) -> None:
            calls[number] += 1

        layer.self_attn.register_forward_hook(count)
    return calls


def unreplayed(blocks: Blocks) -> Blocks:
    return Blocks(blocks.model, (), blocks.groups)


def steps(blocks: Blocks, loss: Callable[[], Tensor], **settings: object) -> SPZO:
    optimizer = SPZO(blocks, **settings)
    for _ in range(2):
        optimizer.step(loss)
    return optimizer


def test_a_head_alone_is_a_block_after_a_frozen_body():
    model = frozen_before(LAYERS)
    for at in ("auto", "head", 2, (1, 3, "head")):
        blocks = split(model, at)
        assert names(blocks, 1) == {"lm_head.weight"}
        assert (len(blocks.groups), blocks.starts, blocks.frozen) == (1, (), LAYERS)
    loss = loss_of(model)
    optimizer = SPZO(blocks)
    optimizer.step(loss)
    (share,) = optimizer.cost_shares
    assert share < 0.2
    (count,) = optimizer.last_step.seeds
    assert len(count) == optimizer.param_groups[0]["perturbations"] == round(3 * share**-0.5)
    # the first step's body ran when the cost was measured
    assert optimizer.last_step.forwards == pytest.approx((1 + len(count)) * share)
    calls = counted(model)
    optimizer.step(loss)
    assert calls == [1] * LAYERS
    assert optimizer.last_step.forwards == pytest.approx(1 + len(count) * share)


def test_block_1_begins_where_training_begins():
    model = frozen_before(2)
    blocks = split(model)
    assert (blocks.starts, blocks.frozen) == ((LAYERS,), 2)
    assert {name.split(".")[2] for name in names(blocks, 1)} == {"2", "3"}
    loss = loss_of(model)
    assert_split_is_exact(blocks, loss)
    optimizer = SPZO(blocks)
    optimizer.step(loss)
    first, second = optimizer.cost_shares
    assert 0.4 < first < 0.65
    assert second < 0.2
    counts = [group["perturbations"] for group in optimizer.param_groups]
    count = round(3 * first**-0.5)
    assert counts == [count, round(count * (second / first) ** -0.5)]
    calls = counted(model)
    optimizer.step(loss)
    assert calls == [1, 1, 1 + counts[0], 1 + counts[0]]
    assert optimizer.last_step.forwards == pytest.approx(1 + counts[0] * first + counts[1] * second)


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.parametrize(
    ("estimator", "perturbations"), [("anchored", (2, 3)), ("balanced", (1, 2)), ("mezo", 2)]
)
def test_losses_and_weights_are_those_of_full_evaluations(estimator, perturbations, evaluation):
    settings = {"estimator": estimator, "perturbations": perturbations, "evaluation": evaluation}
    model, reference = frozen_before(2), frozen_before(2)
    torch.manual_seed(1)
    loss = loss_of(model)
    torch.manual_seed(1)
    full = loss_of(reference)
    trained = steps(split(model), loss, **settings)
    same = steps(unreplayed(split(reference)), full, **settings)
    assert trained.last_step.losses == same.last_step.losses
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert trained.forwards < 0.8 * same.forwards + 2


def test_auto_rates_train_a_head_after_a_frozen_body_like_a_last_block():
    model = frozen_before(LAYERS)
    loss = loss_of(model)
    before = loss().item()
    optimizer = SPZO(split(model), lr="auto")
    for _ in range(8):
        optimizer.step(loss)
    assert loss().item() < before - 0.08  # as an only block it loses 0.005
    assert optimizer.forwards < 8 * 3


def test_a_tied_head_trains_from_the_embeddings_on():
    model = FAMILIES["qwen2"]()
    model.model.layers.requires_grad_(False)
    model.model.norm.requires_grad_(False)
    with pytest.raises(ValueError, match="block 2 of the cut at='auto' has no parameter"):
        split(model)
    model.model.norm.requires_grad_(True)
    assert split(model).frozen == 0


def test_answer_rows_alone_are_a_block_after_a_frozen_body():
    torch.manual_seed(0)
    model = FAMILIES["qwen2"]().requires_grad_(False)
    blocks = split(model, rows=[5, 9])
    assert names(blocks, 1) == {"lm_head.rows"}
    assert (len(blocks.groups), blocks.frozen) == (1, LAYERS)
    SPZO(blocks).step(loss_of(model))


def test_adapters_in_the_last_layers_leave_the_others_frozen():
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, layers_to_transform=[3])
    blocks = split(peft.get_peft_model(FAMILIES["llama"](), config))
    assert (len(blocks.groups), blocks.frozen) == (1, 3)
    torch.manual_seed(0)
    SPZO(blocks).step(loss_of(blocks.model.base_model.model))


def test_micro_batches_replay_what_is_frozen():
    model = frozen_before(2)
    losses = [loss_of(model) for _ in range(2)]

    def mean() -> Tensor:
        return torch.stack([loss() for loss in losses]).mean()

    optimizer = SPZO(split(model))
    optimizer.step(mean)
    calls = counted(model)
    optimizer.step(mean)
    assert calls[:2] == [2, 2]
    with pytest.raises(ValueError, match="added to a network's blocks"):
        optimizer.add_param_group({"params": model.model.embed_tokens.weight.requires_grad_(True)})


class Gated(nn.Module):
    """Its gate is registered after the layers and used before them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(x)
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


def test_the_first_step_finds_what_trains_before_the_frozen_layers():
    model, x = Gated(), torch.randn(2, 4)
    model.layers.requires_grad_(False)
    blocks = split(model)
    assert blocks.frozen == 3
    with pytest.raises(RuntimeError, match=r"block 1's parameters \['gate.bias', 'gate.weight'\]"):
        SPZO(blocks).step(lambda: model(x))
    with pytest.raises(ValueError, match="block 2 of the cut"):
        split(model, example={"x": x})


def test_a_federation_trains_a_head_after_a_frozen_body():
    model = toy().model
    model.layers.requires_grad_(False)
    blocks = split(model)
    assert (len(blocks.groups), blocks.frozen) == (1, 3)
    federation = FederationConfig(clients=2, rounds=3, local_steps=2, batch_size=4)
    examples = toy_data([9, 9])
    with pytest.raises(
        ValueError, match="'anchored', but the model is one block; pass estimator='m"
    ):
        federated.run(blocks, ToyTask(), examples, federation, OptimizerConfig(lr=1e-3))
    settings = OptimizerConfig(estimator="mezo", perturbations=8, lr=1e-3)
    result = federated.run(blocks, ToyTask(), examples, federation, settings)
    # 16 evaluations a step cost little more than the one that runs the layers
    assert result.final.forwards < 3 * 2 * 2 * 4
    assert len({done.digest for done in result.rounds}) == 1 + 3


def test_another_input_runs_what_is_frozen():
    """A closure that generates text, which changes with the weights of either block."""
    losses = []
    for cut in (split, lambda model: unreplayed(split(model))):
        model = frozen_before(2)
        ids = torch.arange(8).reshape(2, 4) + 3

        def loss(model: nn.Module = model, ids: Tensor = ids) -> Tensor:
            settings = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0}
            mask = torch.ones_like(ids)
            tokens = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
            return tokens[:, 4:].float().sum() + model(ids, labels=ids).loss

        optimizer = SPZO(cut(model), estimator="anchored", perturbations=(2, 3), eps=0.3)
        optimizer.step(loss)
        losses.append(optimizer.last_step.losses)
    assert losses[0] == losses[1]
    assert len({round(value) for value in losses[0]}) > 2  # other tokens

"""What stands beside the layer stack: encoders, vision towers, projectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import VOCAB, assert_split_is_exact, names
from small_models import VOCAB as SMALL_VOCAB
from small_models import build
from test_blocks import t5
from torch import Tensor, nn

from fedspzo.blocks.cut import split
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


def runs(module: nn.Module) -> list[int]:
    """Return the number of calls of the first layer inside a module, in a list of one."""
    calls = [0]
    inner = next(m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))

    def count(*_: object) -> None:
        calls[0] += 1

    inner.register_forward_hook(count)
    return calls


def test_an_encoder_decoder_is_cut_in_its_decoder_and_skips_its_encoder():
    torch.manual_seed(0)
    model = t5(num_layers=8)
    ids = torch.randint(3, VOCAB, (2, 40))
    labels = torch.randint(3, VOCAB, (2, 4))

    def loss() -> Tensor:
        return model(input_ids=ids, labels=labels).loss

    blocks = split(model)
    assert blocks.layers == tuple(model.decoder.block[:7])
    assert all(name.startswith(("decoder.block.7", "decoder.final")) for name in names(blocks, 2))
    assert_split_is_exact(blocks, loss)
    optimizer = SPZO(blocks)
    optimizer.step(loss)
    # the last block's cross-attention still reads the encoder's output, and the rest is skipped
    assert optimizer.cost_shares[0] < 0.08
    calls = runs(model.encoder)
    optimizer.step(loss)
    assert calls[0] == 1 + optimizer.param_groups[0]["perturbations"]


def test_a_frozen_encoder_runs_once_a_step():
    torch.manual_seed(0)
    model = t5()
    model.shared.requires_grad_(False)
    model.encoder.requires_grad_(False)
    ids = torch.randint(3, VOCAB, (2, 10))
    optimizer = SPZO(split(model))
    for _ in range(2):
        calls = runs(model.encoder)
        optimizer.step(lambda: model(input_ids=ids, labels=ids).loss)
    assert calls == [1]
    first, second = optimizer.cost_shares
    assert second < first < 0.8
    P1, P2 = (group["perturbations"] for group in optimizer.param_groups)
    assert optimizer.last_step.forwards == pytest.approx(1 + P1 * first + P2 * second)


def vision_language() -> tuple[nn.Module, dict[str, Tensor]]:
    model = build("llava", "LlavaForConditionalGeneration")
    image = model.config.image_token_id
    ids = torch.randint(3, SMALL_VOCAB - 3, (2, 12))
    ids[:, 1:5] = image
    pixels = torch.randn(2, 3, 8, 8)
    return model, {"input_ids": ids, "pixel_values": pixels, "labels": ids.clamp(3, 50)}


def test_a_vision_language_model_is_cut_in_its_text_stack():
    model, batch = vision_language()

    def loss() -> Tensor:
        return model(**batch).loss

    text = model.model.language_model
    assert split(model, -1).layers == tuple(text.layers[:-1])
    assert {"lm_head.weight"} <= names(split(model), 2)
    assert_split_is_exact(split(model, -2), loss)
    optimizer = SPZO(split(model, -2))
    tower = runs(model.model.vision_tower)
    optimizer.step(loss)
    tower[0] = 0
    optimizer.step(loss)
    assert tower[0] == 1 + optimizer.param_groups[0]["perturbations"]
    assert optimizer.cost_shares[0] < 0.3


def test_a_frozen_tower_runs_once_a_step():
    model, batch = vision_language()
    model.model.vision_tower.requires_grad_(False)
    optimizer = SPZO(split(model))
    optimizer.step(lambda: model(**batch).loss)
    tower = runs(model.model.vision_tower)
    projector = runs(model.model.multi_modal_projector)
    optimizer.step(lambda: model(**batch).loss)
    assert tower == [1]
    assert projector == [1 + optimizer.param_groups[0]["perturbations"]]
    assert len(optimizer.cost_shares) == 2


class Pair(nn.Module):
    """An encoder that is called twice, a stack, and a frozen head beside a trained one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.fixed = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor, again: Tensor) -> Tensor:
        x = self.encoder(x) + self.encoder(again)
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(self.fixed(x)).square().mean()


def test_calls_are_told_apart_and_what_comes_after_the_cut_runs():
    torch.manual_seed(0)
    model, x = Pair(), torch.randn(3, 2, 4)
    assert_split_is_exact(split(model), lambda: model(x[0], x[1]) + model(x[1], x[2]))


@torch.no_grad()
def test_another_input_runs_the_module():
    torch.manual_seed(0)
    model, x = Pair(), torch.randn(3, 2, 4)
    blocks = split(model)
    calls = runs(model.encoder)
    with blocks.replay() as replay:
        replay.capture()
        model(x[0], x[1])
        for inputs, ran in ((x[:2], 0), (x[:2].clone(), 0), (x[1:], 2), (x[[0, 2]], 1)):
            calls[0] = 0
            replay.replay()
            model(*inputs)
            assert calls[0] == ran
        x[0].add_(1.0)  # in place: the input that was captured is no more
        calls[0] = 0
        replay.replay()
        model(x[0], x[1])
        assert calls[0] >= 1
    model(x[0], x[1])
    assert calls[0] >= 3
    assert "forward" not in vars(model.encoder)


class Opaque(Pair):
    """Its encoder returns an object that cannot be copied."""

    class Encoder(nn.Linear):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return iter([super().forward(x)])

    def __init__(self) -> None:
        super().__init__()
        self.encoder = self.Encoder(4, 4)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = next(self.encoder(x))
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x).square().mean()


def test_an_output_that_is_no_tensor_is_not_kept():
    torch.manual_seed(0)
    model, x = Opaque(), torch.randn(2, 4)
    optimizer = SPZO(split(model))
    calls = runs(model.encoder)
    optimizer.step(lambda: model(x))
    assert calls[0] > 3


class AfterTraining(Pair):
    """Its frozen encoder comes after a layer that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(4, 4)
        self.encoder.requires_grad_(False)
        self.own = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        aside = self.own(x)  # depends on data alone, though block 1 was in use before it
        return super().forward(self.entry(x), aside)


def test_a_frozen_module_whose_input_moves_with_block_1_costs_what_it_does():
    torch.manual_seed(0)
    model, x = AfterTraining(), torch.randn(2, 4)
    optimizer = SPZO(split(model, example={"x": x}))
    optimizer.step(lambda: model(x))
    # of 1 + 1 + 2 + 4 + 1 products of width 4, and one of width 1, `own` alone is saved
    assert optimizer.cost_shares[0] == pytest.approx((9.25 - 1) / 9.25, abs=0.01)

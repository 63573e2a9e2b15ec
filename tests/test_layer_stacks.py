"""Which list of layers is cut: of mixed classes, shared, nested, and of several."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from families import BERT_LIKE, LLAMA_LIKE, VOCAB, WIDTH, assert_split_is_exact, loss_of, names
from small_models import build
from torch import Tensor, nn

from fedspzo.blocks.cut import split
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


class Mamba(Attention):
    """Another class of layer, with a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.experts[0](x) + self.experts[1](x) + self.experts[2](x)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Mamba(), Mamba(), Attention()])
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x).square().mean()


def test_layers_of_several_classes_are_one_stack():
    model, x = Mixed(), torch.randn(2, 4)
    assert names(split(model), 2) == {"head.weight", "head.bias"}
    for at, starts in ((1, (1,)), (-1, (3,)), ("head", (4,)), ((1, 2, "head"), (1, 2, 4))):
        blocks = split(model, at)
        assert blocks.starts == starts
        assert_split_is_exact(blocks, lambda: model(x))


def test_a_sequential_of_parts_is_cut_inside_its_stack():
    encoder = nn.Sequential(*(Attention() for _ in range(4)))
    whole = nn.Sequential(nn.Linear(4, 4), encoder, nn.Linear(4, 1))
    assert split(whole, 2).layers == (encoder[0], encoder[1])
    chain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    assert split(chain, 2).layers == (chain[0], chain[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("jamba", "JambaForCausalLM"),
        ("zamba", "ZambaForCausalLM"),
        ("olmo_hybrid", "OlmoHybridForCausalLM"),
        ("mllama", "MllamaForCausalLM"),
    ],
)
def test_hybrids_are_cut_at_indices_and_the_head(family, name):
    model = build(family, name)
    loss = loss_of(model)
    # at the others mllama has a layer that text alone does not run
    assert_split_is_exact(split(model, -2), loss)
    assert_split_is_exact(split(model, "head"), loss)
    SPZO(split(model)).step(loss)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            lambda: hf.AlbertForSequenceClassification(
                hf.AlbertConfig(**BERT_LIKE, embedding_size=8)
            ),
            "all its layers are one module",
        ),
        (lambda: build("xlm", "XLMForSequenceClassification"), "several lists of layers in turn"),
        (lambda: build("hrm_text", "HrmTextForCausalLM"), "runs its layers again and again"),
    ],
    ids=["albert", "xlm", "hrm"],
)
def test_layers_that_cannot_be_told_apart_are_cut_after_the_last(model, why):
    model = model()
    loss = loss_of(model)
    assert_split_is_exact(split(model), loss)
    optimizer = SPZO(split(model, "head"))
    optimizer.step(loss)
    assert optimizer.cost_shares[0] < 0.05
    with pytest.raises(ValueError, match=rf"cannot be cut inside its layers.*{why}.*pass 'head'"):
        split(model, 1)


def test_layers_whose_forward_is_called_without_hooks_are_seen():
    """SqueezeBERT calls `layer.forward(...)`."""
    model = build("squeezebert", "SqueezeBertForSequenceClassification")
    loss = loss_of(model)
    assert_split_is_exact(split(model, (3, "head")), loss)
    SPZO(split(model, 3)).step(loss)


def test_lists_of_embeddings_are_no_stack():
    model = build("markuplm", "MarkupLMForSequenceClassification")
    assert split(model, 3).layers == tuple(model.markuplm.encoder.layer[:3])


def test_a_stack_that_the_data_does_not_reach_is_not_cut():
    model = build("phi4_multimodal", "Phi4MultimodalForCausalLM")
    assert split(model, 3).layers == tuple(model.model.layers[:3])
    SPZO(split(model, 3)).step(loss_of(model))


class TwoStacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.ModuleList([Attention() for _ in range(3)])
        self.first = nn.ModuleList([Attention() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.first, *self.second):
            x = layer(x)
        return x.square().mean()


def test_of_several_stacks_the_one_that_runs_last_is_cut():
    model, x = TwoStacks(), torch.randn(2, 4)
    blocks = split(model, example={"x": x})
    assert blocks.layers == tuple(model.second[:2])
    assert_split_is_exact(blocks, lambda: model(x))
    with pytest.raises(ValueError, match=r"several stacks.*'first.3', 'second.2'.*pass at='NAME'"):
        split(model)
    assert split(model, "first.2").layers == tuple(model.first[:2])


def test_a_language_model_of_one_layer_is_cut_before_its_head():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**LLAMA_LIKE, "num_hidden_layers": 1}))
    ids = torch.randint(3, VOCAB, (2, 5))
    blocks = split(model)
    assert names(blocks, 2) == {"lm_head.weight"}
    assert_split_is_exact(blocks, lambda: model(input_ids=ids, labels=ids).loss)
    assert model.config.hidden_size == WIDTH

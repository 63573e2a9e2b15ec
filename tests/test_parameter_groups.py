"""Which parameters SPZO takes, in which groups, and which of them a step moves."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from layerwise_toys import by_copies
from spzo_toys import THREE, VOCAB, llama, loss_of, replayed, same, weights
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks, split
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bare_parameters_are_one_block():
    model = llama().eval()
    for params in (model.parameters(), model.named_parameters(), [{"params": model.parameters()}]):
        optimizer = SPZO(params, 1e-2, evaluation="layerwise")
        before = weights(model)
        optimizer.step(loss_of(model))
        assert optimizer.last_step.forwards == 2
        assert not same(model, before)
    named = SPZO(model.named_parameters())
    assert named.param_groups[0]["param_names"][0] == "model.embed_tokens.weight"
    assert SPZO(model.parameters()).param_groups[0]["param_names"][:2] == ["0", "1"]


def test_bare_groups_have_options_of_their_own():
    model = llama().eval()
    first, second = split(model, at=-1).param_groups()
    groups = [{**first, "lr": 1e-2}, {**second, "lr": 3e-2, "eps": 2e-3}]
    optimizer = SPZO(groups)  # mezo: both groups along the same directions
    optimizer.step(loss_of(model))
    report = optimizer.last_step
    assert report.seeds[0] == report.seeds[1]
    assert report.gradients[0][0] == pytest.approx(2 * report.gradients[1][0])
    assert report.coefficients[1][0] == pytest.approx(-3e-2 * report.gradients[1][0])
    optimizer = SPZO(groups, estimator="balanced")  # without layers to replay: full forwards
    optimizer.step(loss_of(model))
    assert optimizer.last_step.forwards == 2 + 2


def test_frozen_parameters_stay_and_do_not_shift_the_others():
    model = llama().eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = weights(model)
    optimizer = SPZO(model.parameters(), 1e-2)
    assert optimizer.param_groups[0]["param_names"][0] == "1"
    optimizer.step(loss_of(model))
    assert torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])


def test_duplicates_are_taken_once_or_refused():
    weight = nn.Parameter(torch.ones(3))
    again = nn.Parameter(weight.detach())
    optimizer = SPZO([("a", weight), ("b", again), ("a", weight)])
    assert optimizer.param_groups[0]["param_names"] == ["a"]
    with pytest.raises(ValueError, match="'b' shares its memory or its name"):
        SPZO([{"params": [("a", weight)]}, {"params": [("b", again)]}])
    with pytest.raises(ValueError, match="'a' shares its memory or its name"):
        SPZO([("a", weight), ("a", nn.Parameter(torch.ones(3)))])


def test_tied_weights_move_once():
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=4, n_head=2, n_positions=12)
    model = hf.GPT2LMHeadModel(config)
    optimizer = SPZO(split(model), 1e-2, evaluation="layerwise")
    assert len(optimizer.param_groups) == 2  # the head's only matrix is block 1's
    assert optimizer.param_groups[0]["param_names"].count("transformer.wte.weight") == 1
    before = weights(model)
    optimizer.step(loss_of(model))
    assert same(model, replayed(optimizer, before))
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


class Autoencoder(nn.Module):
    """Its decoder's weight is its encoder's, transposed."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, hidden), nn.Linear(hidden, 4)
        self.decoder.weight = nn.Parameter(self.encoder.weight.detach().t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


@pytest.mark.parametrize("hidden", [4, 3])
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.filterwarnings("ignore:parameter")  # it is used past its module
def test_a_weight_and_its_transpose_are_refused_until_one_follows_the_other(hidden, evaluation):
    torch.manual_seed(0)
    model, x = Autoencoder(hidden), torch.randn(8, 4)
    with pytest.raises(ValueError, match=r"'encoder.weight' and 'decoder.weight' share.*freeze"):
        SPZO(Blocks.single(model))
    model.decoder.weight.requires_grad_(False)
    loss = lambda: (model(x) - x).square().mean()  # noqa: E731
    optimizer = SPZO(Blocks.single(model), lr=0.0, evaluation=evaluation)
    optimizer.step(loss)
    expected = by_copies(optimizer, model, loss)
    assert optimizer.last_step.losses == pytest.approx(expected, rel=1e-6)
    assert expected[0] != expected[1]


def test_parameters_that_lie_between_one_anothers_elements_are_apart():
    flat = torch.zeros(4, 6)
    apart = [nn.Parameter(flat[:, ::2]), nn.Parameter(flat[:, 1::2])]
    SPZO(apart)
    with pytest.raises(ValueError, match="'0' and '2' share elements"):
        SPZO([*apart, nn.Parameter(flat[1:2, :3])])
    with pytest.raises(ValueError, match="'1' and '0' share elements"):
        SPZO([{"params": [nn.Parameter(flat[0])]}, {"params": [nn.Parameter(flat[0, :2])]}])


def test_parameters_are_told_apart_whatever_torchs_default_device_and_flat_strides_are():
    flat = torch.zeros(1, 8)
    tied = [nn.Parameter(flat[:, :4]), nn.Parameter(flat[0, :4].unsqueeze(0))]
    assert tied[0].stride() != tied[1].stride()  # of a dimension of one element
    halves = torch.zeros(4, 6)
    with torch.device("meta"):
        assert len(SPZO(tied).param_groups[0]["params"]) == 1
        SPZO([nn.Parameter(halves[:, :3]), nn.Parameter(halves[:, 3:])])


def test_a_wrong_split_is_found_in_the_first_step():
    """A parameter of block 2 that the first block uses, which registration order cannot know."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
            self.gate = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.gate(x)
            for layer in self.layers:
                x = layer(x)
            return x.square().mean()

    model, x = Gated(), torch.ones(2, 4)
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"\['gate.bias', 'gate.weight'\].*example=BATCH"):
        SPZO(split(model, THREE)).step(lambda: model(x))
    assert same(model, before)
    SPZO(split(model, example={"x": x})).step(lambda: model(x))


@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
def test_a_block_without_perturbations_keeps_its_bits(evaluation):
    """Whatever the others do: block 1 is never moved, so that in place too no bit is lost."""
    model = llama()
    optimizer = SPZO(split(model, THREE), 1e-2, evaluation=evaluation, perturbations=(0, 3, 2))
    before, untouched = weights(model), optimizer.param_groups[0]["param_names"]
    for _ in range(3):
        optimizer.step(loss_of(model))
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in untouched)
    moved = [g["param_names"][0] for g in optimizer.param_groups[1:]]
    assert not any(torch.equal(after[name], before[name]) for name in moved)
    report = optimizer.last_step
    assert (report.seeds[0], report.gradients[0], report.coefficients[0]) == ((), (), ())
    assert len(report.losses) == 1 + 3 + 2
    assert report.forwards == pytest.approx(
        1 + 3 * optimizer.cost_shares[0] + 2 * optimizer.cost_shares[1]
    )

"""What a closure does is checked in the first step, and a closure may generate text."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable

import peft
import pytest
import torch
import transformers as hf
from spzo_toys import IDS, THREE, close, llama, loss_of, same, weights
from torch import Tensor, nn
from torch.nn import functional as F

from fedspzo.blocks.cut import Blocks, split
from fedspzo.optim.spzo import SPZO
from fedspzo_kernels import parameter_key, perturb_

pytestmark = pytest.mark.usefixtures("one_thread")


def generated(model: nn.Module, **settings: object) -> Callable[[], Tensor]:
    """The sum of the tokens that the model generates: a loss without a gradient."""

    def loss() -> Tensor:
        tokens = model.generate(
            IDS[:, :4],
            attention_mask=torch.ones(2, 4, dtype=torch.long),
            pad_token_id=0,
            **{"do_sample": False, "max_new_tokens": 5, **settings},
        )
        return tokens[:, 4:].float().sum()

    return loss


def mixed(model: nn.Module) -> Callable[[], Tensor]:
    """A differentiable loss, and then one of text whose length is not known before."""
    own, text = loss_of(model), generated(model, use_cache=False, eos_token_id=5)
    return lambda: own() + text()


def losses_in_full(optimizer: SPZO, model: nn.Module, loss: Callable[[], Tensor]) -> list[float]:
    """The losses at the points of an anchored one-sided step, each of a model moved for it."""
    start, found = weights(model), []
    report = optimizer.last_step
    eps = [group["eps"] for group in optimizer.param_groups]
    with torch.no_grad():
        found.append(float(loss()))
        for block in reversed(range(len(report.seeds))):
            for seed in report.seeds[block]:
                for name in optimizer.param_groups[block]["param_names"]:
                    moved = [model.get_parameter(name)]
                    perturb_(moved, [parameter_key(name)], [seed], [eps[block]])
                found.append(float(loss()))
                for name, p in model.named_parameters():
                    p.copy_(start[name])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        generated,
        lambda model: generated(model, use_cache=False),
        lambda model: generated(model, eos_token_id=5),
        lambda model: generated(model, use_cache=False, num_beams=2, eos_token_id=5),
        mixed,
    ],
    ids=["cached", "uncached", "cached-with-end", "beams-with-end", "mixed"],
)
@pytest.mark.parametrize("evaluation", ["in_place", "layerwise"])
@pytest.mark.filterwarnings("ignore:the model's layers are given")
def test_generated_text_is_the_moved_models(made, evaluation):
    """Replay once returned the activations of the unmoved model's tokens."""
    model = llama().eval()
    loss = made(model)
    optimizer = SPZO(
        split(model, THREE), 1e-9, perturbations=(1, 2, 2), eps=0.2, evaluation=evaluation
    )
    before = weights(model)
    optimizer.step(loss)
    found = list(optimizer.last_step.losses)
    assert len(set(found)) > 2  # the text changes with the weights
    for name, p in model.named_parameters():
        p.data.copy_(before[name])
    assert found == losses_in_full(optimizer, model, loss)


def test_generation_with_a_cache_is_not_replayed_and_says_so():
    model = llama().eval()
    cached, uncached = (SPZO(split(model, -1), 1e-9, perturbations=(1, 2)) for _ in range(2))
    with pytest.warns(UserWarning, match=r"given a DynamicCache, .*use_cache=False lets them be"):
        cached.step(generated(model))
    assert cached.cost_shares == (1.0,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached.step(generated(model))
        uncached.step(generated(model, use_cache=False))
    assert uncached.cost_shares[0] < 0.5


def dropout_in_it(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(F.dropout(model(IDS).logits, 0.3).flatten(0, 1), IDS.flatten())


def noise_in_a_layer(model: nn.Module) -> Callable[[], Tensor]:
    """Dropout that no flag turns off, in a layer that every other evaluation replays."""
    layer = model.model.layers[0].mlp
    layer.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.3))
    return loss_of(model)


def masks_drawn_in_it(model: nn.Module) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        masked = torch.where(torch.rand(IDS.shape) < 0.3, 0, IDS)
        return model(input_ids=masked, labels=IDS).loss

    return loss


def a_batch_drawn_in_it(model: nn.Module) -> Callable[[], Tensor]:
    batches = iter(torch.randint(32, (99, 2, 12)))

    def loss() -> Tensor:
        ids = next(batches)
        return model(input_ids=ids, labels=ids).loss

    return loss


def sampled_text(model: nn.Module) -> Callable[[], Tensor]:
    return generated(model, do_sample=True)


OPTIMIZERS: dict[str, Callable[[nn.Module], SPZO]] = {
    "measured": lambda model: SPZO(split(model, THREE)),
    "given-shares": lambda model: SPZO(split(model, THREE), cost_shares=(0.4, 0.1)),
    "balanced": lambda model: SPZO(split(model, -1), estimator="balanced"),
    "layerwise": lambda model: SPZO(split(model, THREE), evaluation="layerwise"),
    "auto": lambda model: SPZO(split(model, THREE), lr="auto"),
    "single": lambda model: SPZO(Blocks.single(model)),
    "bare": lambda model: SPZO(model.named_parameters()),
    "bare-layerwise": lambda model: SPZO(model.parameters(), evaluation="layerwise"),
}
every_optimizer = pytest.mark.parametrize("made", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


@pytest.mark.slow
@every_optimizer
@pytest.mark.parametrize(
    "changing",
    [dropout_in_it, noise_in_a_layer, masks_drawn_in_it, a_batch_drawn_in_it, sampled_text],
    ids=lambda function: function.__name__,
)
@pytest.mark.filterwarnings("ignore:.*came without their model", "ignore:the model's layers are")
def test_a_loss_that_changes_from_call_to_call_is_an_error(made, changing):
    model = llama().eval()
    loss = changing(model)
    before = weights(model)
    optimizer = made(model)
    with pytest.raises(RuntimeError, match="at the same weights: the closure's data, dropout or"):
        optimizer.step(loss)
    assert close(model, before)
    assert optimizer.steps == 0
    with pytest.raises(RuntimeError, match="at the same weights"):  # also when tried again
        optimizer.step(loss)


def test_bare_parameters_of_a_training_model_with_dropout_are_an_error():
    model = llama().train()
    with pytest.raises(RuntimeError, match=r"call model.eval\(\), or pass Blocks.single\(model\)"):
        SPZO(model.parameters()).step(loss_of(model))
    SPZO(Blocks.single(model)).step(loss_of(model))
    assert model.training


@pytest.mark.slow
@every_optimizer
@pytest.mark.filterwarnings("ignore:.*came without their model")
def test_noise_whose_seed_the_closure_sets_is_a_loss_like_any_other(made):
    model = llama().eval()
    noisy = dropout_in_it(model)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return noisy()

    optimizer = made(model)
    for _ in range(2):
        assert math.isfinite(optimizer.step(loss))


def of_hidden_states(model: nn.Module) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
        return torch.stack([state.square().mean() for state in states]).sum()

    return loss


@pytest.mark.parametrize("shares", [None, (0.4, 0.1)], ids=["measured", "given-shares"])
def test_a_loss_on_hidden_states_of_replayed_layers_is_refused(shares):
    """With given cost shares nothing was checked, and the replayed loss was wrong."""
    model = llama()
    before = weights(model)
    optimizer = SPZO(split(model, THREE), cost_shares=shares)
    with pytest.raises(RuntimeError, match=r"block 2 uses more .* as a loss on hidden states"):
        optimizer.step(of_hidden_states(model))
    assert same(model, before)
    SPZO(Blocks.single(model)).step(of_hidden_states(model))


@pytest.mark.parametrize("shares", [None, (0.4, 0.1)], ids=["measured", "given-shares"])
def test_an_auxiliary_loss_of_replayed_experts_is_refused(shares):
    torch.manual_seed(0)
    config = hf.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.1,
    )
    model = hf.MixtralForCausalLM(config)
    optimizer = SPZO(split(model, THREE), cost_shares=shares)
    with pytest.raises(RuntimeError, match=r"block 2 uses more .* an auxiliary output"):
        optimizer.step(loss_of(model))
    SPZO(Blocks.single(model)).step(loss_of(model))


def test_a_resumed_optimizer_does_not_check_again():
    model = llama()
    first, resumed = SPZO(Blocks.single(model)), SPZO(Blocks.single(model))
    first.step(loss_of(model))
    resumed.load_state_dict(first.state_dict())
    resumed.step(loss_of(model))
    assert resumed.forwards == first.forwards + resumed.last_step.forwards


def test_evaluations_that_could_not_be_replayed_are_counted_in_full():
    model = llama().eval()
    optimizer = SPZO(split(model, -1), 1e-9, perturbations=(1, 6), eps=0.2, cost_shares=(1 / 4,))
    optimizer.step(generated(model, use_cache=False, max_new_tokens=4))
    after_first = optimizer.forwards
    calls = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    optimizer.step(generated(model, use_cache=False, max_new_tokens=4))
    spent = optimizer.forwards - after_first
    assert 1 + 1 + 6 / 4 < spent <= 1 + 1 + 6
    # four calls of the model an evaluation, of which some run the first layer again
    assert spent == pytest.approx(2 + 6 / 4 + 3 / 4 * (len(calls) - 8) / 4)


def detached(model: nn.Module) -> Callable[[], Tensor]:
    """The output layer's weights as they were before the step."""
    states = model.model(input_ids=IDS).last_hidden_state.detach()
    weight = model.lm_head.weight.detach().clone()

    def loss() -> Tensor:
        model(input_ids=IDS)
        return F.cross_entropy((states @ weight.T).flatten(0, 1), IDS.flatten())

    return loss


@pytest.mark.slow
@every_optimizer
@pytest.mark.filterwarnings("ignore:.*came without their model")
def test_a_loss_that_no_weight_changes_is_a_warning_once(made):
    model = llama().eval()
    optimizer = made(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    loss = detached(model)
    with pytest.warns(UserWarning, match=r"all \d+ losses of step 0 are .* calls a copy of the"):
        optimizer.step(loss)
    spent = optimizer.forwards
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.step(loss)
    assert optimizer.forwards - spent < 3 * spent
    assert [group["lr"] for group in optimizer.param_groups] == rates  # nothing was learned of them
    for name, start in weights(llama()).items():  # but for what moves in place round off
        torch.testing.assert_close(model.get_parameter(name), start, rtol=1e-6, atol=1e-7)


def in_jumps(model: nn.Module) -> Callable[[], Tensor]:
    smooth = loss_of(model)
    with torch.no_grad():
        start = smooth()
    return lambda: torch.round(1e5 * (smooth() - start))


@pytest.mark.parametrize("made", ["measured", "balanced", "layerwise", "bare"])
def test_a_loss_in_jumps_is_told_an_eps_at_which_it_changes(made):
    model = llama().eval()
    optimizer = OPTIMIZERS[made](model)
    for group in optimizer.param_groups:
        group["eps"] = 1e-6
    with pytest.warns(UserWarning, match=r"losses of step 0 are .* pass eps=\(") as caught:
        optimizer.step(in_jumps(model))
    (message,) = (str(w.message) for w in caught if "losses of step" in str(w.message))
    advised = [float(number) for number in re.search(r"eps=\((.*?)\)", message)[1].split(", ")]
    assert len(advised) == len(optimizer.param_groups)
    for group, eps in zip(optimizer.param_groups, advised, strict=True):
        group["eps"] = eps
    optimizer.step(in_jumps(model))
    assert len(set(optimizer.last_step.losses)) > 1


def test_a_warning_about_equal_losses_leaves_the_weights_as_they_were():
    model = llama()
    before = weights(model)
    optimizer = SPZO(split(model, THREE), 1e-2, evaluation="layerwise", eps=1e-6)
    with pytest.warns(UserWarning, match="pass eps="):
        optimizer.step(in_jumps(model))
    assert same(model, before)


@pytest.mark.slow
def test_a_compiled_models_call_with_another_input_runs_in_full():
    """A compiled graph cannot branch on an input's values; the evaluation is then repeated."""
    torch._dynamo.reset()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(32, 8)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.head = nn.Linear(8, 32)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            for layer in self.layers:
                x = layer(x).tanh()
            return self.head(x)

    def twice(model: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        """The second pass is on the tokens that the first one found."""
        return lambda: model(model(IDS).argmax(-1)).square().mean()

    plain, inner = Net(), Net()
    model = torch.compile(inner, backend="eager")
    losses = []
    for called, net in ((plain, plain), (model, inner)):
        optimizer = SPZO(split(net), 1e-9, perturbations=(1, 6), eps=0.1)
        optimizer.step(twice(called))
        optimizer.step(twice(called))
        losses.append((optimizer.last_step.losses, optimizer.last_step.forwards))
    assert losses[0][0] == losses[1][0]
    assert losses[1][1] >= losses[0][1] > 1 + 1 + 6 * optimizer.cost_shares[0]


def test_a_reference_pass_without_adapters_is_replayed_as_itself():
    """Preference losses run the same batch with the adapters and without them."""
    model = peft.get_peft_model(
        llama(), peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    ).eval()

    def loss() -> Tensor:
        own = model(input_ids=IDS, labels=IDS).loss
        with model.disable_adapter():
            reference = model(input_ids=IDS, labels=IDS).loss
        return F.softplus(reference - own)

    before = weights(model)
    settings = {"perturbations": (1, 4), "eps": 0.1, "evaluation": "layerwise"}  # exact
    optimizer = SPZO(split(model, -1), 1e-9, sides="one", **settings)
    optimizer.step(loss)
    found = list(optimizer.last_step.losses)
    for name, p in model.named_parameters():
        p.data.copy_(before[name])
    assert found == losses_in_full(optimizer, model, loss)
    assert optimizer.last_step.forwards == pytest.approx(2 + 4 * optimizer.cost_shares[0])

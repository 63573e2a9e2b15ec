"""Capture, replay, and what is put back."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import NamedTuple

import accelerate
import pytest
import torch
from torch import Tensor, nn

from fedspzo.blocks.activation_replay import ActivationReplay
from fedspzo.blocks.cost_shares import measure
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.blocks.flop_count import flop_counter
from fedspzo.blocks.touched import Touched


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        return self.linear(x).tanh() * scale, {"extra": x.mean()}


class Net(nn.Module):
    """Its layers return more than one tensor, and its head writes into their last output."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        extra = {"extra": x}
        for layer in self.layers:
            x, extra = layer(x, scale=2.0)
        return x.add_(1.0).square().mean() + extra["extra"]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def run(net: Net, *inputs: Tensor) -> Tensor:
    return torch.stack([net(x) for x in inputs]).mean()


@torch.no_grad()
def test_replay_returns_the_whole_output_and_runs_no_layer(net):
    x = torch.randn(2, 4)
    full = net(x)
    with ActivationReplay(net.layers) as replay:
        replay.capture()
        assert torch.equal(net(x), full)
        for layer in net.layers:
            layer.calls = 0
        for _ in range(3):  # the head's in-place addition must not reach what was kept
            replay.replay()
            assert torch.equal(net(x), full)
            replay.check()
    assert [layer.calls for layer in net.layers] == [0, 0, 0]


@torch.no_grad()
def test_replay_from_each_of_several_cuts(net):
    """One capture serves all cuts, in any order; layers after the cut run."""
    x = torch.randn(2, 4)
    full = net(x)
    with ActivationReplay(net.layers, (1, 3)) as replay:
        replay.capture()
        assert torch.equal(net(x), full)
        replay.check()
        for blocks, ran in ((2, [0, 0, 0]), (1, [0, 1, 1]), (2, [0, 0, 0])):
            for layer in net.layers:
                layer.calls = 0
            replay.replay(blocks)
            assert torch.equal(net(x), full)
            replay.check()
            assert [layer.calls for layer in net.layers] == ran
        replay.replay(2)
        with pytest.raises(RuntimeError, match="did not run the first block's layers"):
            replay.check()


@torch.no_grad()
@pytest.mark.parametrize("starts", [(2,), (1, 2)])
def test_calls_are_replayed_in_order_from_every_cut(net, starts):
    """Gradient accumulation: the closure runs the model once a micro-batch."""
    inputs = [torch.randn(2, 4) for _ in range(3)]
    full = run(net, *inputs)
    with ActivationReplay(net.layers[:2], starts) as replay:
        replay.capture()
        assert torch.equal(run(net, *inputs), full)
        for blocks, cut in enumerate(starts, 1):
            for layer in net.layers:
                layer.calls = 0
            replay.replay(blocks)
            assert torch.equal(replay.evaluated(lambda: run(net, *inputs)), full)
            assert [layer.calls for layer in net.layers] == [0] * cut + [3] * (3 - cut)
            assert replay.rerun() == 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("calls", "ran"),
    [([0, 1], 0), ([0, 1, 2, 0], 1), ([2, 1, 0], 2), ([0, 0, 0], 2), ([1], 1), ([3, 1, 2], 1)],
    ids=["fewer", "more", "other-order", "repeated", "one-other", "another-input"],
)
def test_a_call_with_another_input_runs_in_full(net, calls, ran):
    """As a closure that generates text does once the weights have moved."""
    inputs = [torch.randn(2, 4) for _ in range(4)]
    chosen = [inputs[i] for i in calls]
    full = run(net, *chosen)
    with ActivationReplay(net.layers[:2]) as replay:
        replay.capture()
        run(net, *inputs[:3])
        replay.replay()
        net.layers[0].calls = 0
        assert torch.equal(replay.evaluated(lambda: run(net, *chosen)), full)
        assert net.layers[0].calls == ran
        assert replay.rerun() == pytest.approx(ran / 3)


@torch.no_grad()
def test_an_input_is_another_one_by_a_single_bit_a_shape_a_dtype_or_a_plain_argument(net):
    x = torch.zeros(2, 4)
    layer = net.layers[0]
    with ActivationReplay(net.layers[:1]) as replay:
        for args, kwargs, ran in (
            ((x.clone(),), {"scale": 1.0}, 0),
            ((-x,), {"scale": 1.0}, 1),  # negative zeros
            ((torch.full((2, 4), 1e-45),), {"scale": 1.0}, 1),
            ((x[:1],), {"scale": 1.0}, 1),
            ((x.clone(),), {"scale": 2.0}, 1),
            ((x.clone(), 1.0), {}, 1),
        ):
            replay.capture()
            layer(x, scale=1.0)
            layer.calls = 0
            replay.replay()
            layer(*args, **kwargs)
            assert layer.calls == ran, (args, kwargs)
        nan = torch.full((2, 4), float("nan"))
        replay.capture()
        layer(nan)
        layer.calls = 0
        replay.replay()
        layer(nan.clone())
        assert layer.calls == 0


@torch.no_grad()
def test_an_input_that_its_layer_writes_into_is_compared_as_it_came():
    class Writing(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.add_(1.0)

    layer = Writing()
    with ActivationReplay([layer]) as replay:
        replay.capture()
        assert torch.equal(layer(torch.zeros(3)), torch.ones(3))
        replay.replay()
        assert torch.equal(layer(torch.zeros(3)), torch.ones(3))
        assert layer.calls == 1
        replay.replay()
        assert torch.equal(layer(torch.ones(3)), 2 * torch.ones(3))
        assert layer.calls == 2


@torch.no_grad()
def test_a_layer_that_is_given_an_object_with_state_runs_in_full():
    class Counting(nn.Module):
        def forward(self, x: Tensor, cache: SimpleNamespace) -> Tensor:
            cache.seen += 1
            return x * cache.seen

    layer, cache = Counting(), SimpleNamespace(seen=0)
    told = pytest.warns(UserWarning, match="given a SimpleNamespace, which may hold state")
    with told, ActivationReplay([layer]) as replay:
        replay.capture()
        assert replay.evaluated(lambda: layer(torch.ones(1), cache)) == 1
        replay.replay()
        assert replay.evaluated(lambda: layer(torch.ones(1), cache)) == 2
        assert replay.rerun() == 0  # the measured cost of a replay holds it already
    assert cache.seen == 2


@torch.no_grad()
def test_a_closure_of_another_model_is_told(net):
    with ActivationReplay(net.layers) as replay:
        replay.capture()
        Net()(torch.randn(2, 4))
        with pytest.raises(RuntimeError, match="did not run the first block's layers"):
            replay.check()


@torch.no_grad()
def test_an_instances_own_forward_is_kept_and_put_back(net):
    layer = net.layers[0]
    own = functools.partial(Layer.forward, layer)
    layer.forward = own
    accelerate.hooks.add_hook_to_module(net.layers[1], accelerate.hooks.ModelHook())
    hooked = net.layers[1].forward
    x = torch.randn(2, 4)
    full = net(x)

    def broken() -> None:
        with ActivationReplay(net.layers) as replay:
            replay.capture()
            assert torch.equal(net(x), full)
            assert layer.forward is not own
            replay.replay()
            assert torch.equal(net(x), full)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert layer.forward is own
    assert net.layers[1].forward is hooked
    assert "forward" not in vars(net.layers[2])
    assert torch.equal(net(x), full)


class Frozen(NamedTuple):
    """Its fields cannot be set."""

    use_cache: bool = True


def test_evaluating_puts_each_flag_back(net):
    net.train()
    net.layers[1].eval()
    net.config = net.layers[0].config = SimpleNamespace(use_cache=True)
    net.layers[1].config = SimpleNamespace(use_cache=False)
    net.layers[2].config = {"use_cache": True}  # no Hugging Face configuration
    net.layers[0].linear.config = Frozen()
    flags = [module.training for module in net.modules()]

    def broken() -> None:
        with evaluating(net):
            assert not any(module.training for module in net.modules())
            assert not net.config.use_cache
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert [module.training for module in net.modules()] == flags
    assert True in flags
    assert False in flags
    assert net.config.use_cache
    assert not net.layers[1].config.use_cache
    with evaluating(None):
        pass


@torch.no_grad()
def test_touched_sees_parameters_used_outside_their_modules_forward():
    linear, embedding, unused = nn.Linear(4, 4), nn.Embedding(3, 4), nn.Linear(4, 4)
    named = {"w": linear.weight, "e": embedding.weight, "u": unused.weight}
    with Touched(named) as touched:
        _ = embedding.weight[1:].T.sum() + linear(torch.ones(4)).sum()
    assert touched.names == {"w", "e"}
    with Touched(named, until=embedding) as touched:
        embedding(torch.tensor([0]))
        linear(torch.ones(4))
    assert touched.names == {"e"}
    assert not embedding._forward_hooks


@torch.no_grad()
def test_measure_gives_the_share_of_the_flops(net):
    x = torch.randn(8, 4)
    second = dict(net.layers[2].named_parameters())
    with ActivationReplay(net.layers[:2]) as replay:
        assert measure(replay, [second], lambda: net(x)) == pytest.approx((1 / 3,))


@torch.no_grad()
def test_measure_gives_a_share_for_every_cut():
    net, x = Net(depth=4), torch.randn(8, 4)
    blocks = [dict(net.layers[n].named_parameters(prefix=str(n))) for n in (1, 3)]
    with ActivationReplay(net.layers, (1, 3)) as replay:
        assert measure(replay, blocks, lambda: net(x)) == pytest.approx((3 / 4, 1 / 4))
        # the second block's parameters, said to be the third's, are used before its cut
        with pytest.raises(RuntimeError, match=r"block 3's parameters \['1.linear.bias', "):
            measure(replay, blocks[::-1], lambda: net(x))


@torch.no_grad()
def test_measure_refuses_a_parameter_used_on_both_sides(net):
    second = {**dict(net.layers[2].named_parameters()), "stray": net.layers[0].linear.weight}
    with (
        ActivationReplay(net.layers[:2]) as replay,
        pytest.raises(RuntimeError, match=r"\['stray'\].*example"),
    ):
        measure(replay, [second], lambda: net(torch.ones(2, 4)))


class Skip(Net):
    """Its head uses the first layer's output besides the last one's."""

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.layers:
            x, _ = layer(x)
            kept.append(x)
        return (kept[0] + kept[-1]).square().mean()


@torch.no_grad()
def test_measure_refuses_losses_that_replay_does_not_reproduce():
    net, x = Skip(), torch.randn(2, 4)
    second = dict(net.layers[2].named_parameters())
    with (
        ActivationReplay(net.layers[:2]) as replay,
        pytest.raises(RuntimeError, match="block 2 uses more"),
    ):
        measure(replay, [second], lambda: net(x))
    net = Skip()
    blocks = [dict(net.layers[n].named_parameters(prefix=str(n))) for n in (1, 2)]
    # after its first layer it can be cut
    with (
        ActivationReplay(net.layers[:2], (1, 2)) as replay,
        pytest.raises(RuntimeError, match="block 3 use"),
    ):
        measure(replay, blocks, lambda: net(x))
    net = Net()
    second = dict(net.layers[2].named_parameters())
    with (
        ActivationReplay(net.layers[:2]) as replay,
        pytest.raises(RuntimeError, match="closure's data"),
    ):
        measure(replay, [second], lambda: net(x) + torch.rand(()))


def shares_of(layers: nn.Sequential, x: Tensor) -> tuple[float, ...]:
    """The cost share of each layer but the first, with all after it."""
    cuts = range(1, len(layers))
    blocks = [dict(layers[n].named_parameters(prefix=str(n))) for n in cuts]
    with ActivationReplay(layers, tuple(cuts)) as replay:
        return measure(replay, blocks, lambda: layers(x).square().mean())


class Recurrent(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Experts(nn.Module):
    """As transformers' mixtures have them, by one product for all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.arange(2, 10, 2, dtype=torch.int32)  # each expert has two of the eight rows
        return torch._grouped_mm(x.flatten(0, 1), self.weight, offs=ends).view_as(x)


@torch.no_grad()
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        lambda: Recurrent(16, 16, batch_first=True),
        Experts,
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 16))),
    ],
    ids=["encoder", "recurrent", "experts", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_of_one_operation_are_counted(layer):
    layers = nn.Sequential(*[layer() for _ in range(4)], nn.Linear(16, 1)).eval()
    *body, last = shares_of(layers, torch.randn(2, 4, 16))
    assert 0 < last < 0.1
    assert body == pytest.approx([(3 - n) / 4 for n in range(3)], abs=last)


@torch.no_grad()
def test_nested_tensors_are_named_with_the_remedy():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    x, padding = torch.randn(2, 4, 16), torch.tensor([[False] * 4, [False, False, True, True]])
    later = dict(encoder.layers[1].named_parameters())
    told = pytest.warns(UserWarning, match=r"given a nested Tensor.*enable_nested_tensor=False")
    with ActivationReplay(encoder.eval().layers, (1,)) as replay, told:
        shares = measure(replay, [later], lambda: encoder(x, src_key_padding_mask=padding).sum())
    assert shares == (1.0,)  # nothing is replayed


@torch.no_grad()
def test_a_recurrent_layer_costs_its_weights_at_every_place_of_a_large_batch():
    layer, x = Recurrent(16, 8, batch_first=True), torch.randn(64, 4, 16)
    with flop_counter() as counter:
        layer(x)
    weights = layer.weight_ih_l0.numel() + layer.weight_hh_l0.numel()
    assert counter.get_total_flops() == 2 * 64 * 4 * weights


class Residual(nn.Module):
    """It adds to what its layers return, in place, between them."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
            y += x
        return y.square().mean()


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_what_layers_return_may_be_changed_in_place(cut):
    net, x = Residual(), torch.randn(2, 4)
    later = dict(net.layers[cut].named_parameters())
    with ActivationReplay(net.layers, (cut,)) as replay:
        assert measure(replay, [later], lambda: net(x)) == pytest.approx((1 - cut / 4,))


class Graph(nn.Module):
    """Its layers mix their inputs by a sparse matrix."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(self.adjacency @ x).relu()
        return x.square().mean()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_a_model_may_compute_with_sparse_tensors(layout):
    net, x = Graph(torch.eye(3).to_sparse(layout=layout)), torch.randn(3, 4)
    later = dict(net.layers[1].named_parameters())
    with ActivationReplay(net.layers, (1,)) as replay:
        assert 0 < measure(replay, [later], lambda: net(x))[0] < 1
    with Touched(
        {"values": net.adjacency.values() if layout != torch.sparse_coo else x}
    ) as touched:
        net(x)
    assert touched.names == {"values"}

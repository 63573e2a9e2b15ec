"""Each baseline's update against its published rule, written here in plain torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from federated_toys import ToyTask, toy, toy_data
from torch import Tensor, nn

from fedspzo.baselines import (
    METHODS,
    decomfl,
    fedavg,
    fedkseed,
    fedmezo,
    last_block,
    lora,
    memory,
    mezo,
)
from fedspzo.baselines.pool import Pool
from fedspzo.baselines.pool_messages import PoolPlan, PoolReport, as_pairs
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, RunResult, run
from fedspzo.federated.partition import draw
from fedspzo.federated.protocol.updates import batch_seed, client_seed
from fedspzo.journal import records as journal
from fedspzo.seeds import step_seeds
from fedspzo_kernels import noise, parameter_key

SEED, LR, EPS = 11, 1e-2, 1e-2
SIZES = [5, 9, 16]
TASK = ToyTask()
DATA = toy_data(SIZES)
FEDERATION = FederationConfig(clients=3, rounds=2, local_steps=2, seed=SEED)
# layerwise: evaluations are at round(theta + eps z), as in the rules below
OPTIMIZER = OptimizerConfig(lr=LR, eps=EPS, evaluation="layerwise", estimator="mezo")

Weights = dict[str, Tensor]
Loss = Callable[[Weights], Tensor]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the rules ---


def start() -> Weights:
    return {name: p.detach().clone() for name, p in toy().model.named_parameters()}


def batch(client: int, round: int, step: int, size: int = 8, data=DATA):
    chosen = draw(len(data[client]), size, batch_seed(SEED, round, client, step))
    return TASK.collate([data[client][i] for i in chosen])


def loss_on(inputs: tuple[Tensor, Tensor]) -> Loss:
    model = toy().model
    x, y = inputs
    return lambda weights: nn.functional.cross_entropy(
        torch.func.functional_call(model, weights, (x,)), y
    )


def direction(weights: Weights, seed: int) -> Weights:
    return {
        n: noise(w.numel(), parameter_key(n), seed).reshape(w.shape) for n, w in weights.items()
    }


def moved(weights: Weights, by: float, z: Weights) -> Weights:
    return {name: w + by * z[name] for name, w in weights.items()}


def only(names: set[str], z: Weights) -> Weights:
    return {name: part if name in names else torch.zeros_like(part) for name, part in z.items()}


def projected(loss: Loss, weights: Weights, z: Weights, sides: str) -> float:
    plus = loss(moved(weights, EPS, z)).item()
    if sides == "one":
        return (plus - loss(weights).item()) / EPS
    return (plus - loss(moved(weights, -EPS, z)).item()) / (2 * EPS)


def step(
    weights: Weights, loss: Loss, zs: list[Weights], sides: str
) -> tuple[Weights, list[float]]:
    """MeZO: all g at the same weights, then the mean of g z."""
    g = [projected(loss, weights, z, sides) for z in zs]
    for value, z in zip(g, zs, strict=True):
        weights = moved(weights, -LR * value / len(zs), z)
    return weights, g


def average(models: list[Weights], share: list[float]) -> Weights:
    return {n: sum(s * m[n] for s, m in zip(share, models, strict=True)) for n in models[0]}


def agrees(model: nn.Module, expected: Weights) -> bool:
    """Equal but for the last bits of losses; and training has moved much further than that."""
    got = dict(model.named_parameters())
    begin = start()
    gap = max((got[n] - w).abs().max().item() for n, w in expected.items())
    way = max((w - begin[n]).abs().max().item() for n, w in expected.items())
    return gap < 2e-5 and way > 5e-3


# --- zeroth order ---


@pytest.mark.parametrize("sides", ["one", "two"])
def test_mezo_is_central_sgd_along_the_mean_of_g_z(sides):
    blocks = toy()
    settings = replace(OPTIMIZER, sides=sides, perturbations=3)
    result = mezo.run(blocks, TASK, DATA, FEDERATION, settings)
    pooled = [[example for own in DATA for example in own]]
    weights = start()
    for number in range(2):
        zs = [direction(weights, s) for s in step_seeds(SEED, number, (3,))[0]]
        weights, _ = step(weights, loss_on(batch(0, number, 0, data=pooled)), zs, sides)
    assert agrees(blocks.model, weights)
    assert result.final.forwards == 2 * (6 if sides == "two" else 4)
    assert result.final.clients == (0,)


def test_fedmezo_averages_the_weights_of_clients_that_took_mezo_steps():
    blocks = toy()
    result = fedmezo.run(blocks, TASK, DATA, FEDERATION, OPTIMIZER)
    weights = start()
    for number in range(2):
        locals_ = []
        for client in range(3):
            own = weights
            for k in range(2):
                (seeds,) = step_seeds(client_seed(SEED, client), 2 * number + k, (1,))
                loss = loss_on(batch(client, number, k))
                own, _ = step(own, loss, [direction(own, s) for s in seeds], "two")
            locals_.append(own)
        weights = average(locals_, [n / sum(SIZES) for n in SIZES])
    assert agrees(blocks.model, weights)
    assert result.final.bytes_up < result.final.fedavg_bytes


def test_decomfl_replays_the_mean_scalars_along_shared_directions():
    blocks = toy()
    federation = FederationConfig(clients=2, rounds=2, local_steps=2, seed=SEED)
    settings = replace(OPTIMIZER, perturbations=2)
    result = decomfl.run(blocks, TASK, DATA[:2], federation, settings)
    weights = start()
    for number in range(2):
        scalars = []
        for client in range(2):
            own, rows = weights, []
            for k in range(2):
                zs = [direction(own, s) for s in step_seeds(SEED, 2 * number + k, (2,))[0]]
                own, g = step(own, loss_on(batch(client, number, k)), zs, "one")
                rows.append(g)
            scalars.append(rows)
        for k, row in enumerate(np.mean(scalars, axis=0)):
            for seed, g in zip(step_seeds(SEED, 2 * number + k, (2,))[0], row, strict=True):
                weights = moved(weights, -LR * g / 2, direction(weights, seed))
    assert agrees(blocks.model, weights)
    assert result.final.forwards == 2 * 2 * 2 * 3


def test_last_block_trains_the_last_block_alone_along_the_mean_of_g_z():
    blocks = toy()
    settings = OptimizerConfig(
        lr=(LR, LR), eps=EPS, evaluation="layerwise", estimator="anchored", perturbations=(7, 3)
    )
    federation = replace(FEDERATION, clients=1, seeds="shared")
    result = last_block.run(blocks, TASK, DATA[:1], federation, settings)
    names = {name for name, _ in toy().groups[-1]}
    weights = start()
    for number in range(2):
        own = weights
        for k in range(2):
            seeds = step_seeds(SEED, 2 * number + k, (0, 3))[1]
            zs = [only(names, direction(own, seed)) for seed in seeds]
            own, _ = step(own, loss_on(batch(0, number, k)), zs, "one")
        weights = own
    assert agrees(blocks.model, weights)
    for name, parameter in blocks.model.named_parameters():
        assert torch.equal(parameter, start()[name]) == (name not in names)
    assert result.final.forwards < 4 * (1 + 3)


def test_last_block_takes_one_rate_for_any_number_of_blocks():
    """By the rule it is P / 1 times the rate; the blocks at rest have one that is not used."""
    both = [toy(at=(1, "head")), toy(at=(1, "head"))]
    for blocks, lr in zip(both, (LR, (LR, LR, 3 * LR)), strict=True):
        settings = OptimizerConfig(lr=lr, perturbations=(1, 1, 3))
        last_block.run(blocks, TASK, DATA, FEDERATION, settings)
    first, second = (dict(blocks.model.named_parameters()) for blocks in both)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("weighted", [False, True])
def test_fedkseed_accumulates_a_scalar_for_each_member_of_its_pool(weighted):
    size, blocks = 6, toy()
    federation = FederationConfig(clients=3, rounds=4, local_steps=2, participation=0.67, seed=SEED)
    result = fedkseed.run(blocks, TASK, DATA, federation, OPTIMIZER, pool=size, weighted=weighted)
    pool = Pool(size, SEED)
    base = start()
    zs = [direction(base, int(seed)) for seed in pool.seeds]
    a, history, odds = np.zeros(size), [[0.0] for _ in range(size)], None
    drawn = set()
    for number in range(4):
        weights = base
        for j, z in enumerate(zs):
            weights = moved(weights, -LR * a[j], z)
        if weighted:
            amplitudes = np.array([np.mean(np.abs(values)) for values in history])
            normal = (amplitudes - amplitudes.min()) / (np.ptp(amplitudes) + 1e-10)
            odds = torch.softmax(torch.from_numpy(normal), 0).float().numpy()
        pairs = []
        taking_part = result.rounds[number + 1].clients
        for client in taking_part:
            own = weights
            for k in range(2):
                member = pool.draw(number, client, k, odds)
                own, (g,) = step(own, loss_on(batch(client, number, k)), [zs[member]], "two")
                pairs.append((client, member, g))
        for client, member, g in pairs:
            a[member] += g * SIZES[client] / sum(SIZES[c] for c in taking_part)
            history[member].append(g)
            drawn.add(member)
    final = base
    for j, z in enumerate(zs):
        final = moved(final, -LR * a[j], z)
    assert agrees(blocks.model, final)
    assert len(drawn) > 1
    # whoever joins late replays one term a member from the base, and holds the same bits
    (record,) = result.records
    late = Blocks.single(toy().model)
    journal.apply(record, late.groups)
    assert len(record.terms[0].seeds) == len(drawn)
    assert journal.digest(late.model.named_parameters()) == result.final.digest
    assert journal.digest(blocks.model.named_parameters()) == result.final.digest


def test_fedkseed_finds_a_rate_for_one_clients_steps():
    federation = replace(FEDERATION, rounds=1)
    found = fedkseed.run(toy(), TASK, DATA, federation, OptimizerConfig(lr="auto"), pool=4)
    assert found.optimizer.lr != "auto"
    fixed = fedkseed.run(toy(), TASK, DATA, federation, found.optimizer, pool=4)
    assert found.final.digest == fixed.final.digest
    shared = mezo.settings(OptimizerConfig(lr="auto"))
    alone = run(Blocks.single(toy().model), TASK, DATA, replace(federation, seeds="shared"), shared)
    assert found.optimizer.learning_rates == alone.rounds[1].lr


def test_fedkseed_draws_by_the_mean_magnitudes_of_all_reports():
    server = fedkseed.PoolServer(3, LR)
    first = PoolReport(0, 0, 1.0, 4.0, 0, as_pairs([1, 2], [-2.0, 4.0]))
    second = PoolReport(0, 1, 1.0, 4.0, 0, as_pairs([2, 2], [-3.0, 5.0]))
    server.aggregate({0: first, 1: second}, {0: 0.75, 1: 0.25})
    np.testing.assert_allclose(
        server.coefficients, [0, LR * 1.5, -LR * (0.75 * 4 + 0.25 * 2)], rtol=1e-6
    )
    # each history begins with a zero: means 0, 2 / 2 and (4 + 3 + 5) / 4
    p = server.probabilities()
    e = np.exp([0, 1 / 3, 1])
    np.testing.assert_allclose(p, e / e.sum(), rtol=1e-6)
    pool, n = Pool(3, 0), 6000
    draws = np.bincount([pool.draw(0, 0, k, p) for k in range(n)], minlength=3)
    assert (np.abs(draws - n * p) < 5 * np.sqrt(n * p * (1 - p))).all()
    uniform = np.bincount([pool.draw(0, 0, k) for k in range(n)], minlength=3)
    assert (np.abs(uniform - n / 3) < 5 * np.sqrt(n * 2 / 9)).all()


@pytest.mark.parametrize("changed", [1, 3, 4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_pool_plan_sends_pairs_or_all_coefficients_whichever_is_less(changed, weighted):
    known = np.arange(8, dtype=np.float32)
    new = known.copy()
    new[:changed] += 0.5
    odds = np.full(8, 0.125, np.float32) if weighted else None
    plan = PoolPlan(3, 1, "ab" * 16, new, odds)
    data = plan.encode(known)
    got = PoolPlan.decode(data, known)
    np.testing.assert_array_equal(got.coefficients, new)
    assert (got.round, got.client, got.digest) == (3, 1, "ab" * 16)
    assert (got.probabilities is None) == (odds is None)
    assert len(data) == 14 + 29 + min(8 * changed, 32) + (32 if weighted else 0)
    np.testing.assert_array_equal(known, np.arange(8))
    with pytest.raises(ValueError, match="checksum"):
        PoolPlan.decode(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], known)


def test_a_pool_report_costs_eight_bytes_a_step():
    report = PoolReport(2, 5, None, 4.0, 1, as_pairs([7, 7], [0.5, -1.0]))
    data = report.encode()
    got = PoolReport.decode(data)
    assert len(data) == 14 + struct.calcsize("<IIffHI") + 2 * 8
    assert (got.round, got.client, got.loss, got.forwards, got.skipped) == (2, 5, None, 4.0, 1)
    assert got.gradients.tolist() == [(7, 0.5), (7, -1.0)]


def test_fedkseed_says_what_it_does_not_take():
    settings = OptimizerConfig(estimator="mezo", perturbations=2)
    with pytest.raises(ValueError, match="perturbations is 2, but FedKSeed takes one"):
        fedkseed.run(toy(), TASK, DATA, FEDERATION, settings)
    with pytest.raises(ValueError, match="pool is 0"):
        fedkseed.run(toy(), TASK, DATA, FEDERATION, OPTIMIZER, pool=0)
    with pytest.raises(ValueError, match="examples has 2 entries, but clients is 3"):
        fedkseed.run(toy(), TASK, DATA[:2], FEDERATION, OPTIMIZER, pool=2)


# --- first order ---


def test_fedavg_averages_the_weights_of_clients_that_took_adamw_steps():
    blocks = toy()
    result = fedavg.run(blocks, TASK, DATA, FEDERATION, OPTIMIZER, weight_decay=0.1)
    weights = start()
    for number in range(2):
        locals_ = []
        for client in range(3):
            own = {name: w.clone().requires_grad_() for name, w in weights.items()}
            adamw = torch.optim.AdamW(own.values(), lr=LR, weight_decay=0.1)
            for k in range(2):
                adamw.zero_grad()
                loss_on(batch(client, number, k))(own).backward()
                adamw.step()
            locals_.append({name: w.detach() for name, w in own.items()})
        weights = average(locals_, [n / sum(SIZES) for n in SIZES])
    assert agrees(blocks.model, weights)
    final, trainable = result.final, 4 * sum(w.numel() for w in weights.values())
    assert final.forwards == 2 * 3 * 2 * 3
    assert final.bytes_up == final.bytes_down == final.fedavg_bytes == 2 * 3 * trainable
    assert final.digest == journal.digest(blocks.model.named_parameters())
    assert all(p.grad is None for p in blocks.model.parameters())


class TextTask:
    """Next-token loss of rows of token ids."""

    def collate(self, examples: list[Tensor]) -> Tensor:
        return torch.stack(examples)

    def loss(self, model: nn.Module, ids: Tensor) -> Tensor:
        return model(input_ids=ids, labels=ids).loss


def test_lora_trains_and_sends_adapters_alone():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=32, **size, **heads))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = list(torch.randint(32, (12, 6)))
    federation = FederationConfig(clients=2, rounds=3, local_steps=2, seed=SEED)
    settings = OptimizerConfig(lr=1e-2)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    result = lora.run(
        Blocks.single(model), TextTask(), [rows[:6], rows[6:]], federation, settings, config=config
    )
    after = dict(model.named_parameters())
    adapters = {name: p for name, p in after.items() if "lora_" in name}
    own = {n.replace("base_layer.", ""): p for n, p in after.items() if n not in adapters}
    assert own.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in own.items())
    assert all(p.detach().abs().sum() > 0 for p in adapters.values())  # B began at zero
    sent = 4 * sum(p.numel() for p in adapters.values())
    assert result.final.bytes_up == 3 * 2 * sent
    assert result.final.loss < result.rounds[1].loss


def test_saved_bytes_are_what_autograd_keeps():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(5, 8), torch.zeros(5, dtype=torch.long)
    saved = memory.saved_bytes(Blocks.single(model), TASK, (x, y))
    # each linear layer keeps its input, tanh its output (the next one's input), cross entropy its
    # log-probabilities, the labels and a scalar: the total weight
    assert saved == 4 * (5 * 8 + 5 * 16 + 5 * 3) + 8 * 5 + 4


# --- all ---


every_method = pytest.mark.parametrize("name", [n for n in METHODS if n != "fedavg-lora"])


@every_method
def test_every_method_is_called_alike(name):
    seen = []
    settings = OptimizerConfig(lr=1e-3)
    result = METHODS[name](
        toy(),
        TASK,
        DATA,
        FEDERATION,
        settings,
        evaluate=lambda model: {"loss": 1.0, "accuracy": 0.5},
        evaluate_every=2,
        on_round=seen.append,
    )
    assert isinstance(result, RunResult)
    assert tuple(seen) == result.rounds
    assert [r.round for r in result.rounds] == [0, 1, 2]
    assert [r.eval_loss for r in result.rounds] == [1.0, None, 1.0]
    first, last = result.rounds[0], result.final
    assert first.forwards == first.bytes_up == 0 == first.bytes_down
    assert first.loss is None
    assert 0 < result.rounds[1].forwards < last.forwards
    assert last.bytes_up > 0
    assert last.bytes_down > 0
    assert last.loss > 0
    assert first.digest != last.digest


class NoLoss(ToyTask):
    """A task whose losses are never finite."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss(model, batch) * math.nan


@every_method
@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_a_loss_that_is_not_finite_moves_nothing(name):
    blocks = toy()
    settings = OptimizerConfig(lr=1e-3)
    result = METHODS[name](blocks, NoLoss(), DATA, FEDERATION, settings)
    final = result.final
    assert final.digest == result.rounds[0].digest
    assert final.loss is None
    assert final.skipped == (2 if name == "mezo" else 12)
    assert final.clients == ((0,) if name == "mezo" else (0, 1, 2))

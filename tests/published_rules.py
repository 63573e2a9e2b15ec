"""The baselines' published rules in plain torch, on a toy model, for the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from federated_toys import ToyTask, toy, toy_data
from torch import Tensor, nn

from fedspzo.federated import FederationConfig, OptimizerConfig
from fedspzo.federated.partition import draw
from fedspzo.federated.protocol.updates import batch_seed
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

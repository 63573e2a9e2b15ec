"""Small models and policies for the tests of lr="auto"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedspzo import SPZO, Blocks, split
from fedspzo.auto_lr.block_statistics import BlockStatistics
from fedspzo.auto_lr.central import CentralPolicy

DIM = 12


class Bowl(nn.Module):
    """A quadratic of curvature `curve`, seen through three linear layers of one number each."""

    def __init__(self, curve: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Shift() for _ in range(3)]).to(dtype)
        self.curve = curve

    def forward(self) -> Tensor:
        x = torch.ones(DIM, dtype=self.layers[0].shift.dtype)  # here all shifts are nothing
        for layer in self.layers:
            x = layer(x)
        return 0.5 * self.curve * x.float().square().sum()


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((DIM,), 8.0))  # far from 0: steps are small beside it

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.shift - 8)


def two_blocks(model: Bowl) -> Blocks:
    return split(model, at=-1, example={})


def bowl_run(
    steps: int, curve: float = 1.0, dtype: torch.dtype = torch.float32, **settings: object
) -> tuple[Bowl, SPZO, list[float]]:
    """A bowl in two blocks, and its losses."""
    model = Bowl(curve, dtype)
    optimizer = SPZO(two_blocks(model), lr="auto", **{"perturbations": (2, 4), **settings})
    return model, optimizer, [optimizer.step(model) for _ in range(steps)]


def newton_run(
    steps: int, dtype: torch.dtype = torch.float32, **settings: object
) -> tuple[nn.Module, SPZO, Callable[[], Tensor]]:
    """A classifier in two blocks, the second of which takes Newton steps, and its loss."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).to(dtype)
    x, y = torch.randn(16, 4, dtype=dtype), torch.randint(3, (16,))
    optimizer = SPZO(
        split(model, at=-1, example={"input": x}),
        **{"lr": "auto", "perturbations": (2, 8), "cost_shares": (0.01,), **settings},
    )

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x).float(), y)

    for _ in range(steps):
        optimizer.step(loss)
    return model, optimizer, loss


def policy(*weights: float, **settings: object) -> CentralPolicy:
    """One of blocks with weights of these sizes, whose steps have not begun."""
    return CentralPolicy(blocks=[BlockStatistics(size) for size in weights], **settings)


def rates_after(
    known: CentralPolicy,
    gradients: Sequence[Sequence[float]],
    *curvatures: float | None,
    turns: int = 1,
) -> tuple[float, ...]:
    """The rates after as many steps that all show the same."""
    costs = (1.0,) * (len(gradients) - 1) + (0.04,)
    for _ in range(turns):
        known.learn(gradients, curvatures or (None,) * len(gradients), costs)
    return known.rates

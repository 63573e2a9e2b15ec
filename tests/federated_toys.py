"""A small classifier, its task and its data, for the tests of the federation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks, split

FEATURES, CLASSES = 8, 3


class Layer(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(super().forward(x))


class Toy(nn.Module):
    """Three residual layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(FEATURES, FEATURES) for _ in range(3)])
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def toy(
    dtype: torch.dtype = torch.float32,
    *,
    single: bool = False,
    at: int | tuple[int | str, ...] = -1,
) -> Blocks:
    """In two blocks, cut before the last layer; or cut elsewhere, or in one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Toy().to(dtype)
    return Blocks.single(model) if single else split(model, at=at)


class ToyTask:
    """Cross entropy of (features, label) pairs."""

    def collate(self, examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        weight = next(model.parameters())
        return nn.functional.cross_entropy(model(x.to(weight.dtype)).float(), y)


def toy_data(sizes: list[int]) -> list[list[tuple[Tensor, int]]]:
    """For each client that many examples of a linear problem."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(FEATURES, CLASSES, generator=generator)
    clients = []
    for size in sizes:
        x = torch.randn(size, FEATURES, generator=generator)
        clients.append(list(zip(x, (x @ truth).argmax(1).tolist(), strict=True)))
    return clients

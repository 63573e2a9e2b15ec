"""Small models, layerwise steps on them, and their losses by copies of the moved weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedspzo.blocks.cut import Blocks
from fedspzo.estimators import find
from fedspzo.evaluation.in_place import InPlaceBlock
from fedspzo.optim.param_groups import named
from fedspzo.optim.spzo import SPZO

LOW = torch.bfloat16


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@torch.no_grad()
def by_copies(optimizer: SPZO, model: nn.Module, loss: Callable[[], Tensor]) -> list[float]:
    """The last step's losses once more: full forwards at weights moved in place from a copy."""
    groups = optimizer.param_groups
    estimator = find(optimizer.estimator)(
        sides=optimizer.sides,
        perturbations=tuple(group["perturbations"] for group in groups),
    )
    blocks = [
        InPlaceBlock(named(group), snapshot=True, stream=optimizer.stream) for group in groups
    ]
    model.eval()
    values = []
    for point in estimator.points():
        for block, group, seeds, offset in zip(
            blocks, groups, optimizer.last_step.seeds, point, strict=True
        ):
            eps = torch.tensor(group["eps"]).item()
            block.move({seeds[p]: sign * eps for p, sign in offset})
        values.append(loss().item())
    for block in blocks:
        block.restore()
    return values


def step_at_no_rate(blocks: Blocks, loss: Callable[[], Tensor], **settings: object) -> SPZO:
    optimizer = SPZO(blocks, evaluation="layerwise", **settings)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(loss)
    return optimizer


def loss_on(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())


class Seen(TorchDispatchMode):
    """How much the op has perturbed, and, on demand, a death at the n-th operation."""

    def __init__(self, die_at: int = -1) -> None:
        super().__init__()
        self.elements, self.count, self.die_at = [], 0, die_at

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.count == self.die_at:
            raise KeyboardInterrupt
        self.count += 1
        if func is torch.ops.fedspzo.perturb_out.default:
            self.elements.append(sum(tensor.numel() for tensor in args[1]))
        elif func is torch.ops.fedspzo.perturb_rows.default:
            self.elements.append(args[2].numel())
        assert func is not torch.ops.fedspzo.perturb_.default  # no copy that is then perturbed
        return func(*args, **(kwargs or {}))


class Small(nn.Module):
    """An embedding that is the head too, and two layers."""

    def __init__(self, vocabulary: int = 512, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return F.linear(self.norm(x), self.embed.weight)


class Keeping(Small):
    """Keeps a list of weights of its own, so that its modules' places for them do not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.norm.weight, self.layers[1].bias]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x + self.kept[1]).tanh()
        return F.linear(x * self.kept[0], self.embed.weight)

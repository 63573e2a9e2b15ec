"""bfloat16 learns what float32 learns, at rates where rounding to nearest stalls."""

from __future__ import annotations

import copy
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks
from fedspzo.optim.spzo import SPZO

pytestmark = pytest.mark.slow

STEPS = 800


def trained(dtype: torch.dtype, seed: int, steps: int = STEPS, **settings: object) -> float:
    """The loss on the way to weights that are near, with the seed's directions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x, teacher = torch.randn(64, 8), copy.deepcopy(model)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
        y, student = teacher(x), model.to(dtype)

    def loss() -> Tensor:
        return F.mse_loss(student(x.to(dtype)).float(), y)

    optimizer = SPZO(Blocks.single(student), 1e-3, seed=seed, eps=5e-3, **settings)
    for _ in range(steps):
        optimizer.step(loss)
    with torch.no_grad():
        return F.mse_loss(student.float()(x), y).item()


def test_bfloat16_reaches_float32s_loss_where_rounding_to_nearest_stalls():
    """Within the noise of three seeds, by default; rounding to nearest is far from it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    full, low, stalled = (
        [trained(dtype, seed, **settings) for seed in range(3)]
        for dtype, settings in (
            (torch.float32, {}),
            (torch.bfloat16, {}),
            (torch.bfloat16, {"rounding": "nearest"}),
        )
    )
    torch.set_num_threads(threads)
    gained = trained(torch.float32, 0, steps=0) - statistics.mean(full)
    noise = ((statistics.variance(full) + statistics.variance(low)) / 3) ** 0.5
    assert noise < 0.1 * gained
    assert abs(statistics.mean(low) - statistics.mean(full)) < 2 * noise
    assert statistics.mean(stalled) - statistics.mean(full) > max(5 * noise, 0.3 * gained)

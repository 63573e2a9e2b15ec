"""Part 5: whole training steps of one model, over their forward passes alone.

python -m gpu.training MODEL
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from forms import mezo
from torch import Tensor

from fedspzo import SPZO, Blocks, split
from fedspzo_kernels import parameter_key, perturb_

from . import device, models
from .bound import Passes, block_passes, forward_share_bound
from .rows import attempt, record

SHAPES = device.sized(((8, 512), (1, 128)), ((2, 16), (1, 8)))
"""Batch and length."""
COPIED = device.sized(10**9, 20_000)
REPEATS = 5


def optimizers(model: Any) -> dict[str, Callable[[], SPZO]]:
    """The optimizers to measure, by name: ours, then MeZO's estimator on our kernels."""
    return {
        "SPZO, in place": lambda: SPZO(split(model), lr=1e-7, evaluation="in_place"),
        "SPZO, layerwise": lambda: SPZO(split(model), lr=1e-7, evaluation="layerwise"),
        "mezo, in place": lambda: SPZO(Blocks.single(model), lr=1e-7, evaluation="in_place"),
    }


def passes(optimizer: SPZO) -> list[Passes]:
    """Count the passes over each block's weights that the last step could not do without."""
    report = optimizer.last_step
    assert report is not None
    return [
        block_passes(
            sum(p.numel() for p in group["params"]),
            len(seeds),
            2 if optimizer.sides == "two" else 1,
        )
        for group, seeds in zip(optimizer.param_groups, report.seeds, strict=True)
    ]


def copy_bytes_per_s() -> float:
    """Measure how many bytes a second a copy of random data reads and writes."""
    source = torch.randn(COPIED, device=device.DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / device.milliseconds(lambda: target.copy_(source)) * 1e3


class Steps:
    """Measures one model's steps for one batch.

    Args:
        name: the model's.
        model: on the device.
        shape: the batch's size and its length.
        bandwidth: bytes that a copy reads and writes in a second.
    """

    def __init__(self, name: str, model: Any, shape: tuple[int, int], bandwidth: float) -> None:
        self.model, self.bandwidth = model, bandwidth
        self.label = f"{name}, {shape[0]} x {shape[1]}"
        self.about = {"model": name, "batch": shape[0], "length": shape[1]}
        self.closure = models.closure(model, *shape)
        self.forward_ms = 0.0

    def forward(self, when: str) -> None:
        """Record the time of a forward pass; the first one is what the steps are compared with."""
        ms = device.milliseconds(self.closure, REPEATS, host=True)
        self.forward_ms = self.forward_ms or ms
        record(f"{self.label}, forward {when}", **self.about, ms=ms)

    def step(self, form: str, run: Callable[[], Any], forwards: float, moved: list[Passes]) -> None:
        """Record the time of a step, its share of forward throughput, and the share's bound."""
        ms = device.milliseconds(run, REPEATS, host=True)
        share = forwards * self.forward_ms / ms
        bound = forward_share_bound(forwards, self.forward_ms, moved, 2, self.bandwidth)
        record(
            f"{self.label}, {form}",
            **self.about,
            form=form,
            ms=ms,
            forwards=forwards,
            forward_share=share,
            bound=bound,
            share_of_bound=share / bound,
        )

    def all(self) -> None:
        """Record every form of a step."""
        with attempt(f"{self.label}, forward before"):
            self.forward("before")
        for form, make in optimizers(self.model).items():
            with attempt(f"{self.label}, {form}"):
                optimizer = make()
                optimizer.step(self.closure)
                optimizer.step(self.closure)  # the first one measures costs too
                report = optimizer.last_step
                assert report is not None
                self.step(
                    form,
                    lambda o=optimizer: o.step(self.closure),  # type: ignore[misc]
                    report.forwards,
                    passes(optimizer),
                )
        with attempt(f"{self.label}, MeZO as published"):
            weights = models.Weights(self.model)
            total = sum(weight.numel() for weight in weights)

            def published() -> None:
                mezo(weights)
                self.closure()
                self.closure()

            self.step("MeZO as published", published, 2.0, [block_passes(total, 1, 2)])
        with attempt(f"{self.label}, forward after"):
            self.forward("after")


def graph(name: str, model: Any, shape: tuple[int, int]) -> None:
    """Record one evaluation in place, launched from Python and replayed from a CUDA graph."""
    loss = models.closure(model, *shape)
    named = list(model.named_parameters())
    keys = [parameter_key(key) for key, _ in named]
    weights = [parameter.detach() for _, parameter in named]
    kept = [weight.clone() for weight in weights]
    seeds = torch.tensor([1], device=device.DEVICE)
    there, back = (torch.tensor([c], device=device.DEVICE) for c in (5e-3, -5e-3))

    def evaluate() -> Tensor:
        perturb_(weights, keys, seeds, there)
        value = loss()
        perturb_(weights, keys, seeds, back)
        return value

    def at(seed: int, run: Callable[[], Tensor]) -> float:
        torch._foreach_copy_(weights, kept)
        seeds.fill_(seed)
        return float(run())

    launched = device.milliseconds(evaluate, REPEATS, host=True)
    replay = device.captured(evaluate)
    replayed = device.milliseconds(replay, REPEATS, host=True)
    losses = [at(5, evaluate), at(5, replay)]
    record(
        f"{name}, {shape[0]} x {shape[1]}, one evaluation in a graph",
        model=name,
        batch=shape[0],
        length=shape[1],
        launched_ms=launched,
        replayed_ms=replayed,
        loss_launched=losses[0],
        loss_replayed=losses[1],
    )


@torch.no_grad()
def main() -> None:
    name = sys.argv[1]
    bandwidth = copy_bytes_per_s()
    record("copy, bfloat16", bytes_per_s=bandwidth)
    device.free()
    model = models.build(name)
    for shape in SHAPES:
        Steps(name, model, shape, bandwidth).all()
        device.free()
    with attempt(f"{name}, one evaluation in a graph"):
        graph(name, model, SHAPES[-1])


if __name__ == "__main__":
    main()

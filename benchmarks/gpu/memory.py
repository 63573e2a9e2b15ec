"""Part 6: the peak memory of training steps, over that of inference."""

from __future__ import annotations

import torch
from forms import mezo

from . import device, models
from .parts import MODELS
from .rows import attempt, record
from .training import SHAPES, optimizers


@torch.no_grad()
def measure(name: str) -> None:
    """Record the peaks of one model, largest batch."""
    batch, length = SHAPES[0]
    model = models.build(name)
    closure = models.closure(model, batch, length)
    closure()
    inference = device.peak_bytes(closure)

    def line(form: str, peak: int) -> None:
        record(
            f"{name}, {batch} x {length}, {form}",
            model=name,
            form=form,
            bytes=peak,
            over_inference=peak / inference,
        )

    line("inference", inference)
    for form, make in optimizers(model).items():
        with attempt(f"{name}, {batch} x {length}, {form}"):
            optimizer = make()
            optimizer.step(closure)
            line(form, device.peak_bytes(lambda o=optimizer: o.step(closure)))  # type: ignore[misc]
    weights = models.Weights(model)

    def published() -> None:
        mezo(weights)
        closure()

    line("MeZO as published", device.peak_bytes(published))


def main() -> None:
    for name in MODELS:
        with attempt(name):
            measure(name)
        device.free()


if __name__ == "__main__":
    main()

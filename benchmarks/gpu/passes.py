"""The passes of one step over the weights, in the published forms and in ours; and a launch.

`--compiled` times what torch.compile makes of DeComFL's form, which takes it a while.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from forms import EPS, GRADIENT, LR, SEED, decomfl, fused, mezo
from torch import Tensor

from fedspzo_kernels import perturb_

from . import device
from .bits import DTYPES
from .rows import attempt, record

Shape = tuple[int, ...]
FLAT = device.sized(10**9, 20_000)
SCALES = (EPS, -2 * EPS, EPS, -LR * GRADIENT)


def opt_shapes(layers: int = 24, width: int = 2048, vocabulary: int = 50272) -> list[Shape]:
    """List the shapes of OPT-1.3B's parameters, without the seconds that its library takes."""
    square, bias = [(width, width), (width,)], (width,)
    layer: list[Shape] = [*(4 * square), bias, bias]  # attention, and the first norm
    layer += [(4 * width, width), (4 * width,), (width, 4 * width), bias, bias, bias]
    return [(vocabulary, width), (2050, width), bias, bias, *(layers * layer)]


SHAPES: dict[str, list[Shape]] = {
    "flat": [(FLAT,)],
    "OPT-1.3B": opt_shapes(*device.sized((), (2, 32, 96))),
}


def decomfl_compiled() -> Callable[[list[Tensor]], None]:
    """DeComFL's form, each pass over a tensor compiled to one kernel."""
    # sizes as symbols and the scale as a tensor: one compilation for each number of dimensions
    torch._dynamo.reset()
    backend = device.sized("inductor", "eager")
    compiled = torch.compile(
        lambda t, s: t.add_(torch.randn_like(t) * s), dynamic=True, backend=backend
    )
    scales = [torch.tensor(scale, device=device.DEVICE) for scale in SCALES]

    def form(tensors: list[Tensor]) -> None:
        for scale in scales:
            torch.manual_seed(SEED)
            for theta in tensors:
                compiled(theta, scale)

    return form


def forms() -> dict[str, Callable[[list[Tensor]], None]]:
    """The forms by name, ours first."""
    if sys.argv[1:] == ["--compiled"]:
        return {"fused": fused, "DeComFL, compiled": decomfl_compiled()}
    return {"fused": fused, "DeComFL": decomfl, "MeZO": mezo}


def measure(shape: str, dtype: str) -> None:
    """Record a step's passes in every form, over one set of tensors."""
    ours = None
    for name, form in forms().items():
        what = f"{shape}, {dtype}, {name}"
        with attempt(what):
            tensors = [
                torch.randn(s, device=device.DEVICE, dtype=DTYPES[dtype]) for s in SHAPES[shape]
            ]
            # some thousand launches
            ms = device.milliseconds(lambda f=form, t=tensors: f(t), 3, ahead_ms=50)  # type: ignore[misc]
            ours = ours or ms
            record(what, shape=shape, dtype=dtype, form=name, ms=ms, over_fused=ms / ours)
        device.free()


def launch() -> None:
    """Record a call for 388 tensors of 8 elements, and a copy of the table that it would need."""
    tensors = list(torch.zeros(388, 8, device=device.DEVICE).unbind())
    keys = list(range(len(tensors)))
    seeds = torch.tensor([1], device=device.DEVICE)
    coeffs = torch.tensor([1.0], device=device.DEVICE)
    table = torch.zeros(512 * 48, dtype=torch.uint8)  # csrc/cuda/layout.h
    table = table if device.DRY else table.pin_memory()
    there = table.to(device.DEVICE, copy=True)

    def call() -> None:
        perturb_(tensors, keys, seeds, coeffs)

    record(
        "a call for 388 small tensors",
        host_us=1e3 * device.milliseconds(call, 20, host=True),
        device_us=1e3 * device.milliseconds(call, 20),
        table_copy_us=1e3 * device.milliseconds(lambda: there.copy_(table, non_blocking=True), 20),
    )


def main() -> None:
    if sys.argv[1:] != ["--compiled"]:
        with attempt("a call for 388 small tensors"):
            launch()
    for dtype in ("bfloat16", "float32"):
        for shape in SHAPES:
            measure(shape, dtype)


if __name__ == "__main__":
    main()

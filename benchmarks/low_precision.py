"""What rounding does to perturbations and updates: the numbers of docs/estimators.md.

`python benchmarks/low_precision.py`; half a minute. Weights are normal with deviation 0.02, as of a
linear layer of a language model; a LayerNorm's are 1.
"""

from __future__ import annotations

import torch

from fedspzo_kernels import noise, perturb_

ELEMENTS, CYCLES, EPS = 1 << 18, 1000, 1e-3
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def drift(dtype: torch.dtype) -> float:
    """How far cycles of +eps, -2 eps, +eps in place move weights, in units of their rms."""
    start = (0.02 * noise(ELEMENTS, key=1, seed=1)).to(dtype)
    theta = start.clone()
    for cycle in range(CYCLES):
        for scale in (EPS, -2 * EPS, EPS):
            perturb_([theta], [2], [cycle], [scale])
    moved = theta.double() - start.double()
    return float(moved.square().mean().sqrt() / start.double().square().mean().sqrt())


def kept(coefficient: float, rounding: str) -> float:
    """The share of a bfloat16 update along z that arrives, on average over the elements."""
    start = (0.02 * noise(1 << 22, key=1, seed=1)).bfloat16()
    theta = start.clone()
    seed = 3 if rounding == "stochastic" else None
    perturb_([theta], [2], [5], [coefficient], rounding=rounding, rounding_seed=seed)  # type: ignore[arg-type]
    z = noise(1 << 22, key=2, seed=5).double()
    moved = theta.double() - start.double()
    return float((moved * z).sum() / (coefficient * z.square().sum()))


def unmoved() -> float:
    """The share of a bfloat16 LayerNorm's weights that a perturbation leaves where they are."""
    theta = torch.ones(ELEMENTS, dtype=torch.bfloat16)
    perturb_([theta], [2], [5], [EPS])
    return float((theta == 1).double().mean())


def main() -> None:
    for dtype in DTYPES:
        print(f"{dtype}: {CYCLES} cycles move weights by {drift(dtype):.1e} of their rms")
    for coefficient in (1e-6, 1e-5):
        shares = {r: kept(coefficient, r) for r in ("nearest", "stochastic")}
        print(f"bfloat16 updates of {coefficient:g} z that arrive: {shares}")
    print(f"bfloat16 LayerNorm weights that eps = {EPS:g} does not move: {unmoved():.1%}")


if __name__ == "__main__":
    main()

"""Part 3: one form of the CUDA library: its bits, then its speed on 10^9 weights.

`--terms` takes fewer numbers of terms, for the slower backends.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor

from fedspzo_kernels import perturb_

from . import bits, device
from .rows import attempt, record

WEIGHTS = device.sized(10**9, 4_000)
MANY = 64
"""From so many terms on, one run is timed, which takes most of a second, in place of five."""
TERMS = (1, 2, 3, 16, 1024)
TURNS = device.sized((1, 2), (1,))


class Case(NamedTuple):
    """What the weights are, and how the sum is rounded to them."""

    dtype: str
    rounding: str


CASES = (Case("bfloat16", "nearest"), Case("float32", "nearest"), Case("bfloat16", "stochastic"))


def yardsticks(weights: Tensor, dtype: str, when: str) -> dict[str, float]:
    """Time what moves the same bytes: a product in place, and a copy of random data."""
    other = torch.empty_like(weights)
    found = {}
    for name, run in (
        ("mul_", lambda: weights.mul_(0.999)),
        ("copy", lambda: other.copy_(weights)),
    ):
        times = [device.milliseconds(run) for _ in TURNS]
        found[name] = sum(times) / len(times)
        for turn, ms in zip(TURNS, times, strict=True):
            rate = 2 * weights.numel() * weights.element_size() / ms * 1e3
            record(f"{name}, {dtype}", dtype=dtype, when=when, turn=turn, ms=ms, bytes_per_s=rate)
    return found


def measure(weights: Tensor, case: Case, terms: int, turn: int, yards: dict[str, float]) -> None:
    """Record one line: a number of terms added to all weights."""
    stochastic = case.rounding == "stochastic"
    seeds = torch.arange(terms, device=device.DEVICE)
    coeffs = torch.full((terms,), 1e-6, device=device.DEVICE)
    random = torch.tensor(7, device=device.DEVICE) if stochastic else None

    def run() -> None:
        perturb_(
            [weights],
            [1],
            seeds,
            coeffs,
            rounding=case.rounding,  # type: ignore[arg-type]
            rounding_seed=random,
        )

    many = terms >= MANY
    ms = device.milliseconds(run, 1 if many else 5, warm=not many)
    record(
        f"{case.dtype}, {case.rounding}, {terms} terms",
        dtype=case.dtype,
        rounding=case.rounding,
        terms=terms,
        turn=turn,
        ms=ms,
        share_of_mul=yards["mul_"] / ms,
        share_of_copy=yards["copy"] / ms,
        terms_per_s=weights.numel() * terms / ms * 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terms", type=int, nargs="+", default=TERMS)
    terms: list[int] = parser.parse_args().terms
    bits.check()
    weights = {
        name: torch.randn(WEIGHTS, device=device.DEVICE, dtype=bits.DTYPES[name])
        for name in dict.fromkeys(case.dtype for case in CASES)
    }
    yards = {name: yardsticks(weights[name], name, "before") for name in weights}
    for turn in TURNS:
        for case in CASES:
            for count in terms:
                with attempt(f"{case.dtype}, {case.rounding}, {count} terms"):
                    measure(weights[case.dtype], case, count, turn, yards[case.dtype])
    for name, tensor in weights.items():
        yardsticks(tensor, name, "after")


if __name__ == "__main__":
    main()

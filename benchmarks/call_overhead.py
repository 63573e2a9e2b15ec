"""What a call of the op costs beside the noise: checks, out of place, and an embedding's lookup.

`python benchmarks/call_overhead.py [--results FILE.md]`; ten seconds on one thread. The two ways of
each line take turns, so that what else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from torch import Tensor

from fedspzo_kernels import Perturber, info, perturb, perturb_, perturb_rows

SEEDS, COEFFS = torch.tensor([7]), torch.tensor([1e-3])

Way = Callable[[], object]


def microseconds(first: Way, second: Way, rounds: int) -> tuple[float, float]:
    """The shortest time of each of two ways that take turns: what nothing else held up."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for way, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            way()
            taken.append(1e6 * (time.perf_counter() - start))
    return min(times[0]), min(times[1])


def checks(count: int) -> tuple[Way, Way]:
    """`perturb_` and a Perturber's `add_` on small tensors, where the checks are what counts."""
    tensors, keys = list(torch.zeros(count, 8).unbind()), list(range(count))
    perturber = Perturber(tensors, keys)
    return (
        lambda: perturb_(tensors, keys, SEEDS, COEFFS),
        lambda: perturber.add_(SEEDS, COEFFS),
    )


def out_of_place(dtype: torch.dtype) -> tuple[Way, Way]:
    """A copy that is perturbed in place, and `perturb` into the same memory; 2**24 weights."""
    source = torch.randn(1 << 24).to(dtype)
    out = torch.empty_like(source)

    def copied() -> None:
        out.copy_(source)
        perturb_([out], [1], SEEDS, COEFFS)

    return copied, lambda: perturb([source], [1], SEEDS, COEFFS, out=[out])


def lookup() -> tuple[Way, Way]:
    """512 tokens in a table of 32,000 rows of 768: a view for each row, and `perturb_rows`."""
    table = torch.randn(32_000, 768).bfloat16()
    ids = torch.randint(32_000, (512,), generator=torch.Generator().manual_seed(0))

    def by_views() -> Tensor:
        rows, places = ids.unique(return_inverse=True)
        found = table[rows]
        offsets = [768 * row for row in rows.tolist()]
        perturb_(found.unbind(), [1] * len(rows), SEEDS, COEFFS, offsets=offsets)
        return found[places]

    return by_views, lambda: perturb_rows(table, ids, 1, SEEDS, COEFFS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "388 tensors of 8 weights: `perturb_`, `Perturber.add_`": (checks(388), 200),
        "1 tensor of 8 weights: `perturb_`, `Perturber.add_`": (checks(1), 2000),
        "2^24 weights, float32: copy and `perturb_`, `perturb`": (out_of_place(torch.float32), 20),
        "2^24 weights, bfloat16: copy and `perturb_`, `perturb`": (
            out_of_place(torch.bfloat16),
            20,
        ),
        "512 rows of 768, bfloat16: views, `perturb_rows`": (lookup(), 50),
    }
    lines = [
        "# A call of the op: two ways",
        "",
        f"{machine()}; {info()['cpu_capability']}; torch {torch.__version__};"
        f" {datetime.date.today()}; `benchmarks/call_overhead.py`; one"
        " thread; the shortest of many turns, in microseconds a call.",
        "",
        "| | the first way | the second | ratio |",
        "| --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    for name, ((first, second), rounds) in ways.items():
        before, after = microseconds(first, second, rounds)
        lines.append(f"| {name} | {before:.1f} | {after:.1f} | **{before / after:.1f}** |")
        print(lines[-1], flush=True)
    if options.results:
        options.results.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

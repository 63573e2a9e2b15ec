"""Peaks of torch's allocations on a CPU, of which Python's own tracing sees nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

ATTEMPTS = 5

MARK = 1237
"""Bytes of an allocation before and of one after: both seen, the profiler watched all the while."""


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that were allocated while `run` ran, less those before it.

    Args:
        run: called once; again where torch's profiler has lost allocations, which happens on a
            busy machine.
    """
    for _ in range(ATTEMPTS):
        moves = _allocations(run)
        if [size for _, size in moves].count(MARK) >= 2:
            return max(accumulate(size for _, size in sorted(moves)))
    raise RuntimeError(f"torch's profiler lost allocations, {ATTEMPTS} times")


def _allocations(run: Callable[[], object]) -> list[tuple[int, int]]:
    """Times, and bytes that were allocated then, or freed where negative."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.empty(MARK, dtype=torch.uint8)
        run()
        torch.empty(MARK, dtype=torch.uint8)
    results = profiler.profiler
    assert results is not None
    assert results.kineto_results is not None
    return [
        (event.start_ns(), event.nbytes())
        for event in results.kineto_results.events()
        if event.name() == "[memory]"
    ]

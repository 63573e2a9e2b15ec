"""The GPU that a part measures on; in a dry run, a CPU in its place.

No other module asks which of the two it has. `FEDSPZO_GPU_DRY=1` makes it a dry run: everything
runs, at tiny sizes, and no number means anything.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

import fedspzo_kernels

DRY = os.environ.get("FEDSPZO_GPU_DRY") == "1"
DEVICE = "cpu" if DRY else "cuda"
CYCLES = 2_000_000
"""Clock cycles of the device in a millisecond, roughly."""

T = TypeVar("T")


def sized(full: T, dry: T) -> T:
    """A size: `full` on a GPU, `dry` in a dry run."""
    return dry if DRY else full


def card() -> str:
    """The GPU's name."""
    return "none: a dry run" if DRY else torch.cuda.get_device_name()


def serving() -> str:
    """The backend that serves the device.

    Raises:
        RuntimeError: it is not the one that FEDSPZO_BACKEND asks for, or none is asked for.
    """
    asked, serves = os.environ.get("FEDSPZO_BACKEND"), fedspzo_kernels.serving(DEVICE)
    if serves != asked:
        raise RuntimeError(
            f"the {serves} backend serves {DEVICE} tensors, but FEDSPZO_BACKEND is {asked!r};"
            " set it to the backend to measure"
        )
    return serves


def synchronize() -> None:
    """Wait for the device."""
    if not DRY:
        torch.cuda.synchronize()


def milliseconds(
    run: Callable[[], object],
    repeats: int = 5,
    *,
    host: bool = False,
    ahead_ms: float = 1.0,
    warm: bool = True,
) -> float:
    """Measure the median time of `run`, in milliseconds.

    Args:
        run: queues work on the device.
        repeats: timed runs.
        host: False: the device's time, with the host ahead of it. True: the time that passes, with
            the host's part in it.
        ahead_ms: how long the device is kept busy first, while the host queues the work.
        warm: run once before, which is not counted.
    """
    if warm and not DRY:
        run()
    return statistics.median(_once(run, 0 if host else ahead_ms) for _ in range(sized(repeats, 1)))


def _once(run: Callable[[], object], ahead_ms: float) -> float:
    if DRY:
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronize()
    if ahead_ms:
        torch.cuda._sleep(int(ahead_ms * CYCLES))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that tensors on the device took while `run` ran."""
    free()
    if DRY:
        run()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def free() -> None:
    """Give memory that no tensor uses back to the device."""
    if not DRY:
        gc.collect()
        torch.cuda.empty_cache()


def captured(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture `run` in a CUDA graph.

    Args:
        run: returns a tensor; it may not wait for the device.

    Returns:
        A function that replays the graph and returns that tensor, the same memory every time.
    """
    if DRY:
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in first calls, not in a capture
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay

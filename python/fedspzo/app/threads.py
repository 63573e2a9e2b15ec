"""Chooses the number of torch's threads, by timing a pass on one and on all of them.

A loss may have other last bits on another number of threads, so a run on a number that was timed is
not repeated to the bit. Its journal replays to its weights all the same, on any number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

GAIN = 0.9
"""All threads are used where a pass takes less than this share of its time on one thread. Otherwise
they gain little, and would lose much beside another program, as they wait for each other."""
SLOW = 3.0
"""A round that takes more than this many times the median of those before is far slower."""
ROUNDS = 5
"""Number of rounds before one can be far slower."""
LONG = 0.25
"""A pass of this many seconds is timed once, and a shorter one three times."""


SMALL = 4_000_000
"""Number of parameters below which a model uses one thread, unless the user has chosen."""


def one_thread_if_small(model: nn.Module) -> bool:
    """Set torch to one thread if the model is small, and tell whether it is.

    A small model's operations are too short for several threads: they gain little on a free
    machine, and lose a factor of twenty on a busy one, where they wait for each other.
    """
    small = sum(p.numel() for p in model.parameters()) < SMALL
    if small:
        torch.set_num_threads(1)
    return small


class Threads:
    """Keeps torch at the faster of one thread and all threads.

    Args:
        work: one pass of the model.
        seconds: tells the time. Default: `time.perf_counter`.

    Attributes:
        line: what was measured last, in words. It is empty before `choose`.
    """

    def __init__(
        self, work: Callable[[], object], seconds: Callable[[], float] = time.perf_counter
    ) -> None:
        self.work = work
        self.seconds = seconds
        self.all = torch.get_num_threads()
        self.line = ""
        self._rounds: list[float] = []

    def choose(self) -> int:
        """Time a pass on one thread and on all, set the faster number, and return it."""
        if self.all == 1:
            return 1
        one, all_ = self._time(1), self._time(self.all)
        chosen = self.all if all_ < GAIN * one else 1
        torch.set_num_threads(chosen)
        self.line = (
            f"{chosen} {'threads' if chosen > 1 else 'thread'}: a pass took {one:.2g} s on one, and"
            f" {all_:.2g} s on {self.all}"
        )
        return chosen

    def after_round(self, seconds: float) -> bool:
        """Choose again if the last round was far slower than those before.

        Args:
            seconds: the time that the round took.

        Returns:
            True if the number of threads is another one now.
        """
        before = self._rounds
        slow = len(before) >= ROUNDS and seconds > SLOW * statistics.median(before)
        if not slow:
            before.append(seconds)
            return False
        self._rounds = []
        now = torch.get_num_threads()
        return self.choose() != now

    def _time(self, threads: int) -> float:
        """Return the seconds of a pass: the least of three, or of one that is long."""
        torch.set_num_threads(threads)
        self.work()  # the first one starts the threads
        least = self._once()
        for _ in range(2):
            if least < LONG:
                least = min(least, self._once())
        return least

    def _once(self) -> float:
        start = self.seconds()
        self.work()
        return self.seconds() - start

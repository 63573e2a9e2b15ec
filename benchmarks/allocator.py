"""What the allocator costs a forward pass: glibc as it is, and told to keep its memory, in pairs.

    python benchmarks/allocator.py [--threads 1] [--pairs 12]

SmolLM2-135M and batches of 16 reviews, another in each pass, as in training: a prompt's loss, which
reads the logits of two words, and a language model's, which reads all of them. Two processes stay
alive and take turns at passes. One has glibc's defaults. The other keeps freed memory: it never
asks the kernel for a mapping of its own, and never gives the heap's end back
(MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=4 GiB; glibc ignores mmap thresholds above 32 MiB).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results/allocator.md"
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
LOSSES = ("a prompt's", "a language model's")
WARM = 6


def child(threads: int) -> None:
    """Make a pass for each line that is read, and print its faults, its seconds and the peak."""
    import torch
    from targets.problems import PROBLEMS, load
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    loaded = load(next(problem for problem in PROBLEMS if problem.name == "reviews"))
    model, task = loaded.fresh().eval(), loaded.task
    batches = [task.collate(loaded.train[i : i + 16]) for i in range(0, 320, 16)]

    def language_model(batch: Any) -> float:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        ids = batch["input_ids"][:, 1:].reshape(-1)
        return float(F.cross_entropy(logits[:, :-1].reshape(len(ids), -1), ids))

    losses = {LOSSES[0]: lambda batch: float(task.loss(model, batch)), LOSSES[1]: language_model}
    with torch.no_grad():
        for number, line in enumerate(sys.stdin):
            before = resource.getrusage(resource.RUSAGE_SELF)
            losses[line.strip()](batches[number % len(batches)])
            after = resource.getrusage(resource.RUSAGE_SELF)
            print(
                after.ru_minflt - before.ru_minflt,
                after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
                after.ru_stime - before.ru_stime,
                after.ru_maxrss,
                flush=True,
            )


class Passes:
    """A process that makes passes when asked to."""

    def __init__(self, threads: int, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__, "--child", "--threads", str(threads)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def one(self, loss: str) -> list[float]:
        """Page faults, the processor's seconds, the kernel's of them, the peak so far in KiB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(loss, file=self.process.stdin, flush=True)
        return [float(word) for word in self.process.stdout.readline().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.threads)
        return
    from machine import machine
    from tqdm.auto import tqdm

    lines = [
        "# What the allocator costs a forward pass",
        "",
        f"`python benchmarks/allocator.py`: SmolLM2-135M, batches of 16 reviews, float32, threads:"
        f" {options.threads}; medians of {options.pairs} pairs. On {machine()}.",
        "",
        "| loss | memory | page faults a pass | seconds a pass | in the kernel | of the default's"
        " seconds | peak, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for loss in LOSSES:
        sides = [Passes(options.threads, environment) for environment in ({}, KEEPING)]
        for _ in range(WARM):
            for side in sides:
                side.one(loss)
        found = [[side.one(loss) for side in sides] for _ in tqdm(range(options.pairs), desc=loss)]
        for side in sides:
            side.process.communicate()
        ratio = statistics.median(kept[1] / default[1] for default, kept in found)
        for name, column in (("glibc's defaults", 0), ("kept", 1)):
            faults, seconds, system, _ = (
                statistics.median(values)
                for values in zip(*(p[column] for p in found), strict=True)
            )
            lines.append(
                f"| {loss} | {name} | {faults:.0f} | {seconds:.3f} | {system:.3f} |"
                f" {ratio if column else 1:.3f} | {found[-1][column][3] / 1024:.0f} |"
            )
            print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

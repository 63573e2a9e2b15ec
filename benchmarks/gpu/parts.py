"""What the suite runs, in the order of worth.

A new part is a module here with a `main()` that leaves rows (`rows.record`), a line in `parts`, and
its goals in `goals`. A race on a real model, which takes minutes, belongs at the end; `--only`
runs it in a call of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MODELS = ("OPT-1.3B", "Llama-3.2-3B")
PYTEST = ("pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu.pytest_rows", "-m", "gpu")


@dataclass(frozen=True)
class Part:
    """One process of the suite.

    Attributes:
        name: in rows and reports.
        module: and its arguments: what `python -m` runs.
        seconds: after which it is killed.
        variant: the form of the CUDA library that it runs with.
        backend: what has to serve the GPU, FEDSPZO_BACKEND.
    """

    name: str
    module: tuple[str, ...]
    seconds: float
    variant: str = "default"
    backend: str = "cuda"


def parts(variants: Sequence[str] = ("default",)) -> list[Part]:
    """List the suite's parts, most wanted first.

    Args:
        variants: the names of the libraries there are, "default" first.
    """
    return [
        Part("environment", ("gpu.environment",), 40),
        Part("tests", (*PYTEST, "tests/test_gpu.py"), 75),
        *(Part("variants", ("gpu.variants",), 45, variant) for variant in variants),
        Part("counters", ("gpu.counters",), 50),
        *(Part(f"training {name}", ("gpu.training", name), 75) for name in MODELS),
        Part("memory", ("gpu.memory",), 50),
        Part("passes", ("gpu.passes",), 40),
        Part("memcheck", ("gpu.sanitizer", "memcheck"), 45),
        Part("racecheck", ("gpu.sanitizer", "racecheck"), 45),
        Part("compiled", ("gpu.passes", "--compiled"), 60),
        Part("triton", ("gpu.variants", "--terms", "1", "4"), 60, backend="triton"),
        *(Part("counters", ("gpu.counters",), 40, variant) for variant in variants[1:]),
    ]

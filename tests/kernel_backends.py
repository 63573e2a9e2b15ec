"""The implementations of the op that this machine can run, each as the same function."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import fedspzo_kernels
from fedspzo_kernels import reference

Op = Callable[[list[Tensor], list[int], list[int], Tensor, Tensor, Tensor | None, int], None]

CAPABILITIES = ("avx512", "avx2", "default")


@contextmanager
def capability(name: str) -> Any:
    """Force the CPU backend's instruction set."""
    before = os.environ.get("FEDSPZO_CPU_CAPABILITY")
    os.environ["FEDSPZO_CPU_CAPABILITY"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["FEDSPZO_CPU_CAPABILITY"]
        else:
            os.environ["FEDSPZO_CPU_CAPABILITY"] = before


def compiled(name: str, form: str = "perturb_") -> Op:
    """One of the three ops with an instruction set forced."""

    def op(*args: Any) -> None:
        with capability(name):
            getattr(torch.ops.fedspzo, form)(*args)

    return op


def why_not(name: str) -> str | None:
    """Why an instruction set cannot be tested here, or None."""
    cpu = fedspzo_kernels.info()["backends"]["cpu"]
    if not cpu.available:
        return f"no compiled CPU backend: {cpu.reason}"
    with capability(name):
        try:
            torch.ops.fedspzo.cpu_capability()
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None


def perturb(
    op: Op,
    tensor: Tensor,
    key: int = 0,
    offset: int = 0,
    seeds: Any = (0,),
    coeffs: Any = (1.0,),
    rounding_seed: int | None = None,
    stream: int = 0,
) -> Tensor:
    """One tensor through one implementation; returns the tensor."""
    random = None if rounding_seed is None else torch.tensor(rounding_seed)
    op([tensor], [key], [offset], torch.tensor(seeds), torch.tensor(coeffs), random, stream)
    return tensor


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


REFERENCE: Op = reference.perturb_

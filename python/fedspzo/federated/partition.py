"""Partitions: they deal examples to clients.

Indices are drawn with NumPy's legacy `RandomState`, whose streams do not change between releases.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedspzo.checks import LIMIT_64, check_positive, check_whole

Indices = npt.NDArray[np.int64]


def generator(seed: int) -> np.random.RandomState:
    """Create a random generator from a 64-bit seed."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))


def draw(n: int, size: int, seed: int) -> Indices:
    """Draw `size` different numbers from range(n), in random order. Draw all n if size >= n.

    Returns:
        int64 (min(size, n),).
    """
    return generator(seed).permutation(n)[:size].astype(np.int64)


def iid(examples: int, clients: int, seed: int) -> list[Indices]:
    """Deal shuffled examples out evenly. The clients' numbers of examples differ by at most one.

    Args:
        examples: number of examples.
        clients: number of clients, at most `examples`.
        seed: in [0, 2**64).

    Returns:
        For each client an int64 array of indices, ascending. Every index is in exactly one array.

    Raises:
        ValueError: an argument is out of range; the message names it, its value and the remedy.
    """
    _check(examples, clients, seed)
    return [np.sort(part) for part in np.array_split(draw(examples, examples, seed), clients)]


def dirichlet(
    labels: Sequence[Hashable] | npt.NDArray[Any], clients: int, alpha: float, seed: int
) -> list[Indices]:
    """Deal each label's examples out in shares drawn from Dirichlet(alpha) (arXiv 1909.06335).

    A client that gets no example is given one of the client that has the most.

    Args:
        labels: the label of each example.
        clients: number of clients, at most that of examples.
        alpha: concentration, above 0. With 0.1 most clients see one label; 100 is nearly iid.
        seed: in [0, 2**64).

    Returns:
        For each client an int64 array of indices, ascending. Every index is in exactly one array.

    Raises:
        ValueError: an argument is out of range; the message names it, its value and the remedy.
    """
    _check(len(labels), clients, seed)
    check_positive("alpha", alpha)
    random = generator(seed)
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)

    parts: list[list[int]] = [[] for _ in range(clients)]
    for indices in members.values():
        shares = random.dirichlet(np.full(clients, alpha))
        # with a tiny alpha all gamma draws can underflow; one client gets the label then
        if not np.isfinite(shares).all():
            shares = np.eye(clients)[random.randint(clients)]
        cuts = np.rint(np.cumsum(shares)[:-1] * len(indices)).astype(int)
        for part, dealt in zip(parts, np.split(random.permutation(indices), cuts), strict=True):
            part.extend(int(index) for index in dealt)
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def _check(examples: int, clients: int, seed: int) -> None:
    if examples < 1:
        raise ValueError(f"examples is {examples}; give at least one")
    check_whole("clients", clients, 1, 2**16 - 1)
    check_whole("seed", seed, 0, LIMIT_64 - 1)
    if clients > examples:
        raise ValueError(
            f"clients is {clients}, but there are only {examples} examples;"
            " give at most one client an example"
        )

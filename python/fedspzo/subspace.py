"""Newton's steps in the span of a block's directions, where its evaluations are almost free.

A head's loss is badly conditioned: along the mean of the features, which is no more than a bias, it
bends far more than along what tells the classes apart, and the one limits the rate of the other.
Along P random directions all second derivatives take P (P + 3) / 2 evaluations, and what solves for
them is again a coefficient a direction, a term like others. The subspace is that of randomized
subspace Newton (Gower et al., arXiv 1905.10874); eigenvalues count by their size, so that a saddle
is left (Dauphin et al., arXiv 1406.2572).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 1 / 32
"""Of the mean size of eigenvalues, the least that damps a step."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues, by size, and eigenvectors of second derivatives along P directions.

    Attributes:
        sizes: (P,), float64.
        vectors: (P, P), one a column.
    """

    sizes: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, hessian: Sequence[Sequence[float]]) -> Spectrum:
        """Of a symmetric matrix of finite numbers."""
        values, vectors = torch.linalg.eigh(torch.tensor(hessian, dtype=torch.float64))
        return cls(values.abs(), vectors)

    @property
    def typical(self) -> float:
        """The size that half of the eigenvalues do not exceed; at least `LEAST` times their mean.

        A batch of few examples bends in few ways, and what is seen of the others is rounding.
        """
        return max(float(self.sizes.median()), LEAST * float(self.sizes.mean()))

    def damp(self, gradients: Sequence[float], damping: float) -> list[float]:
        """Projected gradients, less where the loss bends: (|H| / damping + 1)^-1 g."""
        g = torch.tensor(gradients, dtype=torch.float64)
        damped = self.vectors @ ((self.vectors.T @ g) / (self.sizes / damping + 1))
        return [float(x) for x in damped]

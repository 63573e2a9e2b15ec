"""Newton's steps in the span of a block's directions, where its evaluations are almost free.

A head's loss is badly conditioned: its curvature is far higher along the mean of the features,
which is no more than a bias, than along what tells the classes apart, and the one limits the rate
of the other. Along P random directions the Hessian times any combination of them takes P + 1
evaluations. From their projected gradients on, `NEWTON_PRODUCTS` such products span the directions
of high curvature where a step would go (Lanczos, 1950); what damps the step along these is again a
coefficient a direction, a term like others. The subspace is that of randomized subspace Newton
(Gower et al., arXiv 1905.10874). Eigenvalues count by their size, so that a saddle is left (Dauphin
et al., arXiv 1406.2572).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedspzo.estimators.anchored import Anchored
from fedspzo.estimators.defaults import NEWTON_PRODUCTS
from fedspzo.evaluation.evaluator import Evaluator

LEAST_DAMPING = 1 / 32
"""Least damping of a step, over the mean size of all eigenvalues."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What is known of the Hessian along P directions.

    Attributes:
        values: (K,), float64: its Ritz values in the Krylov space of the gradient.
        vectors: (P, K): theirs, one a column. Their span holds the gradient.
        trace: the mean second derivative along a direction.
    """

    values: Tensor
    vectors: Tensor
    trace: float

    @classmethod
    def of(
        cls,
        gradient: Sequence[float],
        trace: float,
        product: Callable[[Sequence[float]], Sequence[float]],
    ) -> Spectrum:
        """Estimate it by Lanczos' method, from the gradient on.

        It takes `NEWTON_PRODUCTS` products, or fewer where these span the whole space.

        Args:
            gradient: the projected gradients.
            trace: the mean second derivative along a direction.
            product: the Hessian, (P, P), times a vector of norm 1.
        """
        g = torch.tensor(gradient, dtype=torch.float64)
        pivots, products = g.new_zeros(len(g), 0), g.new_zeros(len(g), 0)
        following = g
        for _ in range(min(NEWTON_PRODUCTS, len(g))):
            size = following.norm()
            for _ in range(2):  # once more: rounding
                following = following - pivots @ (pivots.T @ following)
            if not math.isfinite(size) or following.norm() <= 1e-9 * size:
                break
            pivot = following / following.norm()
            pivots = torch.column_stack([pivots, pivot])
            following = torch.tensor(product(pivot.tolist()), dtype=torch.float64)
            products = torch.column_stack([products, following])
        if not products.isfinite().all():
            products = torch.zeros_like(products)
        within = pivots.T @ products
        values, rotation = torch.linalg.eigh((within + within.T) / 2)
        return cls(values, pivots @ rotation, trace)

    @property
    def typical_eigenvalue(self) -> float:
        """The mean size of all eigenvalues but the largest.

        It is at least `LEAST_DAMPING` times the mean size of all. The loss of a batch of few
        examples has curvature along few directions, and what is seen of the others is rounding.
        """
        count = len(self.vectors)
        sizes = self.values.abs()
        total = count * self.trace - float(self.values.sum()) + float(sizes.sum())
        rest = (total - float(max(sizes, default=0.0))) / max(1, count - 1)
        return max(rest, LEAST_DAMPING * abs(total) / count)

    def damp(self, gradients: Sequence[float], damping: float) -> list[float]:
        """Damp projected gradients where the curvature is high: (|H| / damping + 1)^-1 g."""
        g = torch.tensor(gradients, dtype=torch.float64)
        damped = self.vectors @ ((self.vectors.T @ g) / (self.values.abs() / damping + 1))
        return [float(x) for x in damped]


def spectrum_along(walk: Evaluator, estimator: Anchored, eps: Sequence[float]) -> Spectrum:
    """Estimate the last block's Hessian spectrum along its directions.

    Evaluates the extra points that this needs.
    """
    walk.visit(estimator.hessian_points())
    losses, block = walk.means(), len(eps) - 1

    def product(pivot: Sequence[float]) -> list[float]:
        walk.visit(estimator.hessian_points(pivot))
        return estimator.hessian_product(walk.means(), eps, pivot)

    trace = estimator.curvature(losses, eps, block)
    assert trace is not None  # it is evaluated on both sides
    return Spectrum.of(estimator.gradient(losses, eps, block), trace, product)

"""Newton steps in the span of a block's directions, for a block whose evaluations are almost free.

A head's loss is badly conditioned. Its curvature along the mean of the features, which is no more
than a bias, is far higher than along the features that tell the classes apart, and so limits the
rate for these. A Newton step damps the step where the curvature is high.

Along P random directions the Hessian times any combination of them takes P + 1 evaluations.
`NEWTON_PRODUCTS` such products, from the projected gradients on, span the directions of high
curvature in which the step would go (Lanczos, 1950). The damped step is again one coefficient a
direction. The subspace is that of randomized subspace Newton (Gower et al., arXiv 1905.10874).
Eigenvalues count by their absolute value, so that a saddle is left (Dauphin et al., arXiv
1406.2572).
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

RESOLUTION = 1e-6
"""Curvature that losses in float32 do not show, as a share of the mean size of all eigenvalues."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Holds an estimate of the Hessian's spectrum along P directions.

    Attributes:
        values: the Hessian's Ritz values in the Krylov space of the gradient, (K,), float64.
        vectors: the Ritz vectors, (P, K), float64, one a column. Their span holds the gradient.
        trace: mean second derivative along a direction.
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
        """Estimate the spectrum by Lanczos' method, from the gradient on.

        This takes `NEWTON_PRODUCTS` products, or fewer if these span the whole space.

        Args:
            gradient: the projected gradients, (P,).
            trace: mean second derivative along a direction.
            product: multiplies the Hessian, (P, P), with a vector of norm 1, (P,).
        """
        g = torch.tensor(gradient, dtype=torch.float64)
        pivots, products = g.new_zeros(len(g), 0), g.new_zeros(len(g), 0)
        following = g
        for _ in range(min(NEWTON_PRODUCTS, len(g))):
            size = following.norm()
            for _ in range(2):  # rounding leaves a part the first time
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

        The loss of one example, or of two, may have curvature along no other directions than those
        that the Ritz vectors span. Then this is nothing but rounding, and at least `RESOLUTION`
        times the mean size of all.
        """
        count = len(self.vectors)
        sizes = self.values.abs()
        total = count * self.trace - float(self.values.sum()) + float(sizes.sum())
        rest = (total - float(max(sizes, default=0.0))) / max(1, count - 1)
        return max(rest, RESOLUTION * abs(total) / count)

    def damp(self, gradients: Sequence[float], damping: float) -> list[float]:
        """Return projected gradients, (P,), damped by the curvature: (|H| / damping + 1)^-1 g."""
        g = torch.tensor(gradients, dtype=torch.float64)
        damped = self.vectors @ ((self.vectors.T @ g) / (self.values.abs() / damping + 1))
        return [float(x) for x in damped]


def spectrum_along(evaluator: Evaluator, estimator: Anchored, eps: Sequence[float]) -> Spectrum:
    """Estimate the last block's Hessian spectrum along its directions.

    The evaluator evaluates the extra points that this needs.

    Args:
        evaluator: has evaluated the estimator's points.
        estimator: its `newton` is the last block.
        eps: each block's perturbation scale.
    """
    losses, block = evaluator.means(), len(eps) - 1

    def product(pivot: Sequence[float]) -> list[float]:
        beside = estimator.hessian_points(pivot)
        evaluator.visit(beside)
        return estimator.hessian_product(evaluator.means(), eps, beside)

    trace = estimator.curvature(losses, eps, block)
    assert trace is not None  # a Newton block is evaluated on both sides
    return Spectrum.of(estimator.gradient(losses, eps, block), trace, product)

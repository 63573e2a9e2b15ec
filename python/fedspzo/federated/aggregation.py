"""Aggregation rules: they combine the scalars of a round's clients into the scalars of one step.

With shared seeds all clients of a round report along the same directions, so their scalars can be
compared one by one. `FederationConfig.aggregation` takes a rule, or the name of one in `RULES`.
To add a rule, see docs/federation.md. NumPy is not imported here, so that the settings load at
once: the rules use the arrays' own methods.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from fedspzo.checks import check_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[np.float64]"
Mask: TypeAlias = "npt.NDArray[np.bool_]"


class AggregationRule(Protocol):
    """Combines clients' scalars along shared directions.

    A rule keeps no state between rounds, so a run that is resumed after a crash reaches the same
    bits as one that never stopped. Derive from this class to inherit the defaults of
    `shared_seeds` and `weighted`.

    Attributes:
        name: the rule's name, which a journal keeps and a resumed run compares.
        shared_seeds: the rule needs `seeds = "shared"`. Default True. Only the weighted mean has
            False: with seeds of their own, clients' scalars are multiplied by their weights, and
            `combine` is not called.
        weighted: clients are weighted by `FederationConfig.weighting`. Default False: all have the
            same weight, as a client that lies may also lie about its number of examples.
    """

    name: str
    shared_seeds: bool = True
    weighted: bool = False

    @abstractmethod
    def combine(
        self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
    ) -> tuple[Array, Mask]:
        """Combine the scalars of a round's clients.

        Args:
            values: float64 (clients, local steps, directions of all blocks), by ascending client,
                already clipped; zero in a step that a client skipped. Do not write to it.
            taken: bool (clients, local steps), True where a client took the step.
            weights: one for each client, with sum 1; all equal unless `weighted`.
            byzantine: the share of clients assumed to lie, `FederationConfig.byzantine`.

        Returns:
            Finite scalars, float64 (local steps, directions), and a mask of the steps that have
            any, bool (local steps,).
        """


class Mean(AggregationRule):
    """Takes the weighted mean of each scalar. A single liar can move it anywhere."""

    name = "mean"
    shared_seeds = False
    weighted = True

    def combine(
        self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
    ) -> tuple[Array, Mask]:
        """Combine the scalars, as `AggregationRule.combine` describes."""
        return _weighted_sum(values, weights), _anyone(taken)


class TrimmedMean(AggregationRule):
    """Takes the mean of each scalar without its f largest and f smallest values.

    This is the coordinate-wise trimmed mean of Yin et al. 2018 (arXiv 1803.01498).
    """

    name = "trimmed-mean"

    def combine(
        self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
    ) -> tuple[Array, Mask]:
        """Combine the scalars, as `AggregationRule.combine` describes."""
        f = _liars(len(values), byzantine, honest=1)
        kept = _ordered(values)[f : len(values) - f]
        return _weighted_sum(kept, [1 / len(kept)] * len(kept)), _anyone(taken)


class Median(AggregationRule):
    """Takes the median of each scalar (Yin et al. 2018, arXiv 1803.01498)."""

    name = "median"

    def combine(
        self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
    ) -> tuple[Array, Mask]:
        """Combine the scalars, as `AggregationRule.combine` describes."""
        ordered, count = _ordered(values), len(values)
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2, _anyone(taken)


class Krum(AggregationRule):
    """Takes the scalars of the client with the smallest sum of squared distances to its neighbours.

    A client's neighbours are the n - f - 2 nearest of the n clients, where f is the number assumed
    to lie (Blanchard et al. 2017, arXiv 1703.02757).
    """

    name = "krum"

    def combine(
        self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
    ) -> tuple[Array, Mask]:
        """Combine the scalars, as `AggregationRule.combine` describes."""
        neighbours = max(1, len(values) - _liars(len(values), byzantine, honest=3) - 2)
        scores = []
        for one in values:
            distances = ((values - one) ** 2).sum(axis=(1, 2))
            distances.sort()  # the first is its distance to itself
            scores.append(float(distances[1 : 1 + neighbours].sum()))
        chosen = scores.index(min(scores))
        return values[chosen], taken[chosen]


class RecordedRule(AggregationRule):
    """Stands for a rule that a journal names and that is not registered in this process.

    The journal of such a run can be replayed, shown and compacted, as it holds the coefficients.
    """

    shared_seeds = False  # it was checked when the run began

    def __init__(self, name: str) -> None:
        self.name = name

    def combine(
        self, values: Array, taken: Mask, weights: Sequence[float], byzantine: float
    ) -> tuple[Array, Mask]:
        """Raise ValueError: there is no code to combine with."""
        raise ValueError(
            f"aggregation is {self.name!r}, of which only the name is known here; register the rule"
            " with register_rule before going on with the run"
        )


RULES: dict[str, AggregationRule] = {
    rule.name: rule for rule in (Mean(), TrimmedMean(), Median(), Krum())
}
"""The rules by name. `register_rule` adds to it."""


def register_rule(rule: AggregationRule) -> None:
    """Register a rule, so that `FederationConfig(aggregation=name)` and journals can name it.

    Raises:
        ValueError: another rule has the name, or the object is not a rule.
    """
    check_rule(rule)
    RULES[rule.name] = rule


def check_rule(rule: object) -> None:
    """Raise ValueError unless the object is a rule, and no rule of another class has its name."""
    for name in ("name", "shared_seeds", "weighted", "combine"):
        if not hasattr(rule, name):
            raise ValueError(
                f"aggregation is {rule!r}, which has no {name!r}; derive it from AggregationRule"
            )
    check_text("name of the aggregation rule", rule.name)  # type: ignore[attr-defined]
    known = RULES.get(rule.name)  # type: ignore[attr-defined]
    if known is not None and type(known) is not type(rule):
        raise ValueError(
            f"aggregation is a {type(rule).__name__} named {known.name!r}, which is the name of"
            f" {type(known).__name__}; give it another name"
        )


def _weighted_sum(values: Array, weights: Sequence[float]) -> Array:
    # one client after another, so that the bits do not depend on a library's order of summation
    parts = (weight * one for one, weight in zip(values, weights, strict=True))
    return cast("Array", sum(parts))


def _anyone(taken: Mask) -> Mask:
    """Return a mask of the steps that at least one client took, (steps,)."""
    return cast("Mask", taken.any(axis=0))


def _ordered(values: Array) -> Array:
    """Return a copy of the values in which each scalar is sorted over the clients."""
    ordered = values.copy()
    ordered.sort(axis=0)
    return ordered


def _liars(clients: int, byzantine: float, *, honest: int) -> int:
    """Return f, the number of clients assumed to lie. It keeps 2 f + honest <= clients."""
    wanted = math.ceil(byzantine * clients - 1e-9)  # 0.3 * 10 may be above 3
    return max(0, min(wanted, (clients - honest) // 2))

"""What a round's reports come to: the coefficients of its terms.

A pure function of the reports and the run's settings, in float64 and in a fixed order, so that
everybody who computes it gets the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedspzo.federated.protocol.messages import Report
from fedspzo.federated.protocol.updates import EVERYBODY, Scalars

from .aggregation import AggregationRule, Array, Mask
from .clipping import clip
from .settings import FederationConfig, OptimizerConfig, Weighting

Entries = tuple[tuple[int, Scalars], ...]
"""(client, coefficients), as in `Update`."""


def combined(
    reports: Sequence[Report], federation: FederationConfig, optimizer: OptimizerConfig
) -> Entries:
    """The coefficients of a round: each client's own, or with shared seeds once for all.

    A step that a client skipped counts as a zero of that client.

    Args:
        reports: those that are used, by client; of the run's shape.
        federation: how they are weighted, clipped and put together.
        optimizer: resolved.

    Raises:
        ValueError: a coefficient overflows float32, or the aggregation rule returned something
            that is no scalars.
    """
    values, taken = _table(reports, federation, optimizer)
    values = clip(values, taken, optimizer.directions, federation.clip)
    share = weights(reports, federation.counting)
    if federation.seeds == "per-client":
        rows = [values[row, mask] for row, mask in enumerate(taken)]
        return _own(reports, rows, share, optimizer)
    rule = federation.rule
    answer = rule.combine(values, taken, list(share.values()), federation.byzantine)
    one, mask = _checked(rule, answer, values.shape[1:])
    return _common(len(mask), np.flatnonzero(mask), one[mask], optimizer)


def averaged(
    reports: Sequence[Report], federation: FederationConfig, optimizer: OptimizerConfig
) -> Entries:
    """The coefficients where nothing is clipped, and the mean taken: `combined`, nearly always.

    Products, quotients and sums alone, so it is the same on every machine: a journal need not
    hold what comes to this. In memory it takes no more than the reports do.
    """
    rows = [report.gradients.values.astype(np.float64) for report in reports]
    share = weights(reports, federation.weighting)
    if federation.seeds == "per-client":
        return _own(reports, rows, share, optimizer)
    steps = np.array(sorted({step for report in reports for step in report.gradients.steps}), int)
    total = np.zeros((len(steps), sum(optimizer.directions)))
    for report, values in zip(reports, rows, strict=True):
        total[np.searchsorted(steps, report.gradients.steps)] += share[report.client] * values
    return _common(federation.local_steps, steps, total, optimizer)


def weights(reports: Iterable[Report], weighting: Weighting) -> dict[int, float]:
    """Give the share of the round's update that each report's client has, as `shares`."""
    return shares({report.client: report.examples for report in reports}, weighting)


def shares(examples: Mapping[int, int], weighting: Weighting) -> dict[int, float]:
    """Give each client's share of a round's update; they add up to 1.

    Args:
        examples: how many each of the round's clients has.
        weighting: of the clients' updates.
    """
    counts = {c: count if weighting == "examples" else 1 for c, count in examples.items()}
    total = sum(counts.values())
    return {client: count / total for client, count in counts.items()}


def coefficients(
    gradients: Array, weight: float, optimizer: OptimizerConfig
) -> npt.NDArray[np.float32]:
    """-lr w g / P of every gradient, block by block with its learning rate.

    Args:
        gradients: (steps, directions of all blocks).
        weight: w.
        optimizer: resolved.

    Returns:
        The nearest float32 values; infinite beyond float32's range.
    """
    counts, rates = optimizer.directions, optimizer.learning_rates
    repeated = np.repeat(counts, counts)
    scale = np.repeat([-(rate * weight) for rate in rates], counts)
    with np.errstate(over="ignore", invalid="ignore"):
        values: npt.NDArray[np.float32] = (scale * gradients / repeated).astype(np.float32)
    return values


def _table(
    reports: Sequence[Report], federation: FederationConfig, optimizer: OptimizerConfig
) -> tuple[Array, Mask]:
    """The gradients (clients, steps, directions), and which steps were taken."""
    shape = len(reports), federation.local_steps
    values = np.zeros((*shape, sum(optimizer.directions)))
    taken = np.zeros(shape, dtype=bool)
    for row, report in enumerate(reports):
        steps = list(report.gradients.steps)
        values[row, steps], taken[row, steps] = report.gradients.values, True
    return values, taken


def _checked(
    rule: AggregationRule, answer: tuple[Array, Mask], shape: tuple[int, ...]
) -> tuple[Array, Mask]:
    """What a rule returned; ValueError unless it is scalars of this shape, (steps, directions)."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(
            f"aggregation rule {rule.name!r} returned {type(answer).__name__}; it has to return"
            " scalars and which steps have any, a pair"
        )
    one, mask = np.asarray(answer[0], np.float64), np.asarray(answer[1])
    if one.shape != shape or mask.shape != shape[:1] or mask.dtype != bool:
        raise ValueError(
            f"aggregation rule {rule.name!r} returned scalars {one.shape} and steps {mask.shape},"
            f" {mask.dtype}; it has to return {shape}, and bool {shape[:1]}"
        )
    if not np.isfinite(one).all():
        raise ValueError(
            f"aggregation rule {rule.name!r} returned a scalar that is not finite; mend the rule"
        )
    return one, mask


def _own(
    reports: Sequence[Report],
    rows: Sequence[Array],
    share: dict[int, float],
    optimizer: OptimizerConfig,
) -> Entries:
    """The coefficients of each client that took a step, from its gradients of these steps."""
    return tuple(
        (
            report.client,
            replace(report.gradients, values=coefficients(row, share[report.client], optimizer)),
        )
        for report, row in zip(reports, rows, strict=True)
        if report.gradients.steps
    )


def _common(
    local_steps: int, steps: npt.NDArray[np.int_], rows: Array, optimizer: OptimizerConfig
) -> Entries:
    """The coefficients for everybody, from what all gradients of these steps come to."""
    if not len(steps):
        return ()
    rounded = rows.astype(np.float32).astype(np.float64)  # as if one client had reported them
    values = coefficients(rounded, 1.0, optimizer)
    return ((EVERYBODY, Scalars(local_steps, tuple(map(int, steps)), values)),)

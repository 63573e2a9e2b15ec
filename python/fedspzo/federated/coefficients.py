"""Computes the coefficients of a round's terms from its reports.

The coefficients are a pure function of the reports and the run's settings. They are computed in
float64 and in a fixed order, so that everybody who computes them gets the same bits.
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
"""Pairs (client, coefficients), as `Update.entries` has them."""


def aggregate(
    reports: Sequence[Report], federation: FederationConfig, optimizer: OptimizerConfig
) -> Entries:
    """Clip and aggregate a round's reports. Return the coefficients of its terms.

    With per-client seeds each client has coefficients of its own; with shared seeds there is one
    entry for all. A step that a client skipped counts as zeros of that client. A client that
    skipped all steps has no share, and the others' shares add up to 1.

    Args:
        reports: the accepted reports, ascending by client; of the run's shape.
        federation: says how reports are weighted, clipped and aggregated.
        optimizer: the step's settings, resolved.

    Raises:
        ValueError: a coefficient overflows float32, or the aggregation rule returned a value of
            another type, shape or dtype, or one that is not finite.
    """
    reports = [report for report in reports if report.gradients.steps] or reports
    values, taken = _table(reports, federation, optimizer)
    values = clip(values, taken, optimizer.directions, federation.clip)
    share = weights(reports, federation.counting)
    if federation.seeds == "per-client":
        rows = [values[row, mask] for row, mask in enumerate(taken)]
        return _per_client(reports, rows, share, optimizer)
    rule = federation.rule
    answer = rule.combine(values, taken, list(share.values()), federation.byzantine)
    one, mask = _checked(rule, answer, values.shape[1:])
    return _shared(len(mask), np.flatnonzero(mask), one[mask], optimizer)


def weighted_mean(
    reports: Sequence[Report], federation: FederationConfig, optimizer: OptimizerConfig
) -> Entries:
    """Return the coefficients that `aggregate` gives for the rule "mean" where nothing is clipped.

    Here a client that skipped all steps has a share. Journals hold the coefficients of such rounds.
    They are products, quotients and sums, which have the same bits on every machine. So a journal
    leaves out the coefficients that equal these. The memory needed is that of the reports. The
    arguments are those of `aggregate`.
    """
    rows = [report.gradients.values.astype(np.float64) for report in reports]
    share = weights(reports, federation.weighting)
    if federation.seeds == "per-client":
        return _per_client(reports, rows, share, optimizer)
    steps = np.array(sorted({step for report in reports for step in report.gradients.steps}), int)
    total = np.zeros((len(steps), sum(optimizer.directions)))
    for report, values in zip(reports, rows, strict=True):
        total[np.searchsorted(steps, report.gradients.steps)] += share[report.client] * values
    return _shared(federation.local_steps, steps, total, optimizer)


def weights(reports: Iterable[Report], weighting: Weighting) -> dict[int, float]:
    """Return the share of each report's client in the round's update, as `shares` does."""
    return shares({report.client: report.examples for report in reports}, weighting)


def shares(examples: Mapping[int, int], weighting: Weighting) -> dict[int, float]:
    """Return each client's share of a round's update. The shares add up to 1.

    Args:
        examples: the number of examples of each of the round's clients.
        weighting: "examples": in proportion to the numbers of examples; "uniform": equal shares.
    """
    counts = {c: count if weighting == "examples" else 1 for c, count in examples.items()}
    total = sum(counts.values())
    return {client: count / total for client, count in counts.items()}


def coefficients(
    gradients: Array, weight: float, optimizer: OptimizerConfig
) -> npt.NDArray[np.float32]:
    """Compute the coefficient -lr_b w g / P_b of each projected gradient g.

    The learning rate lr_b and the number of directions P_b are those of the gradient's block b
    (FedSPZO, arXiv 2502.10239: the update is the mean over the directions).

    Args:
        gradients: float64 (steps, directions of all blocks).
        weight: w, the client's share of the update.
        optimizer: the step's settings, resolved.

    Returns:
        The coefficients rounded to float32, in the shape of `gradients`; infinite beyond float32's
        range.
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
    """Return all gradients, (clients, steps, directions), and the steps taken, (clients, steps)."""
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
    """Return a rule's answer as arrays. Raise ValueError unless it has the shape, and is finite.

    Args:
        rule: the rule, for the message.
        answer: the value that its `combine` returned.
        shape: (steps, directions).
    """
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


def _per_client(
    reports: Sequence[Report],
    rows: Sequence[Array],
    share: dict[int, float],
    optimizer: OptimizerConfig,
) -> Entries:
    """Return the coefficients of each client that took a step.

    Args:
        reports: one for each client.
        rows: each client's gradients, (steps taken, directions).
        share: each client's share of the update.
        optimizer: the step's settings, resolved.
    """
    return tuple(
        (
            report.client,
            replace(report.gradients, values=coefficients(row, share[report.client], optimizer)),
        )
        for report, row in zip(reports, rows, strict=True)
        if report.gradients.steps
    )


def _shared(
    local_steps: int, steps: npt.NDArray[np.int_], rows: Array, optimizer: OptimizerConfig
) -> Entries:
    """Return the coefficients that hold for all clients, from the aggregated gradients.

    Args:
        local_steps: number of local steps in a round.
        steps: the steps that have gradients, ascending.
        rows: their gradients, (len(steps), directions).
        optimizer: the step's settings, resolved.
    """
    if not len(steps):
        return ()
    rounded = rows.astype(np.float32).astype(np.float64)  # like one client's report
    values = coefficients(rounded, 1.0, optimizer)
    return ((EVERYBODY, Scalars(local_steps, tuple(map(int, steps)), values)),)

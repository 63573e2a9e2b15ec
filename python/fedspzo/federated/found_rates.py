"""The federated policy of `lr="auto"`: it finds rates before the first round, then adapts them.

Each round is a turn of every block. A round that was applied is never undone. The policy sees the
rounds' reports alone, so a server that is resumed after a crash gets the same rates from its
journal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from fedspzo.auto_lr.block_statistics import BlockStatistics, mean_product
from fedspzo.auto_lr.central import CentralPolicy
from fedspzo.auto_lr.constants import HALVE, LEARNING_TURNS
from fedspzo.auto_lr.loss_monitor import LossMonitor
from fedspzo.auto_lr.rates import RateSettings, rates
from fedspzo.checks import check_whole
from fedspzo.federated.protocol.messages import Report

from .coefficients import weights
from .settings import FederationConfig, Weighting

LEAST_FACTOR = 2.0**-64
"""Smallest factor on the rates: they are not halved further."""
ABSURD = 1e100
"""Largest magnitude of a number in a journal's header. Its inverse is the smallest."""


@dataclass
class FoundRates:
    """Decides a federation's learning rates from its blocks' statistics and its losses.

    Attributes:
        blocks: each block's statistics.
        losses: monitors the rounds' losses.
        settings: say how noisy a round is, and how the rates decay.
        factor: product of the halvings so far. Default 1.
    """

    blocks: list[BlockStatistics]
    losses: LossMonitor
    settings: RateSettings
    factor: float = 1.0

    @property
    def lr(self) -> tuple[float, ...]:
        """The learning rates of the next round, one for each block."""
        return rates(self.blocks, self.settings, self.factor)

    def learn(
        self, reports: Sequence[Report], directions: Sequence[int], weighting: Weighting
    ) -> None:
        """Learn from a round's reports.

        Each quantity is the median over the clients, weighted by their shares of the update. So a
        client with less than half of the update cannot set the rates alone. A loss that diverges
        halves the rates.

        Args:
            reports: the reports that were used.
            directions: each block's number of directions in a step.
            weighting: the clients' weighting.
        """
        taken = [report for report in reports if report.gradients.steps]
        if not taken:
            return
        shares = weights(taken, weighting)
        sizes = zip(*map(root_mean_square, taken), strict=True)
        typical = iter([median(size, list(shares.values())) for size in sizes])
        for seen, count in zip(self.blocks, directions, strict=True):
            gradients = list(islice(typical, count))
            if gradients:
                seen.add_turn(count, mean_product(gradients, gradients), None)
        losses = {report.client: report.loss for report in taken if report.loss is not None}
        if losses:
            loss = median(list(losses.values()), [shares[client] for client in losses])
            if self.losses.observe(loss) == "diverged" and self.factor > LEAST_FACTOR:
                self.factor *= HALVE
                self.losses.restart()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the entry "auto" of a journal's header.

        They are complete before the first round alone, as they hold no later state.
        """
        return {
            "effective_clients": self.settings.clients,
            "factor": self.factor,
            "steps": self.losses.steps,
            "first_loss": self.losses.first_mean,
            "blocks": [{name: asdict(seen)[name] for name in _BLOCK} for seen in self.blocks],
        }

    @classmethod
    def from_dict(
        cls, values: Any, federation: FederationConfig, directions: Sequence[int]
    ) -> FoundRates:
        """Restore the policy from the values of `to_dict`, as it was before the first round.

        Args:
            values: an entry "auto", which may be damaged.
            federation: the run's settings.
            directions: each block's number of directions in a step.

        Raises:
            ValueError: a value is missing or out of range; the message names it.
        """
        blocks = _field(values, "blocks")
        if not isinstance(blocks, list) or len(blocks) != len(directions):
            raise ValueError(f"auto.blocks is not of {len(directions)} blocks, as lr is")
        for seen in blocks:
            check_whole("auto.blocks: turns", _field(seen, "turns"), 0, LEARNING_TURNS)
            for name in ("weight_rms", "square_sum", "smoothed_square", "smoothed_eigenvalue"):
                _check(f"auto.blocks: {name}", _field(seen, name), 0)
            if _field(seen, "trace_sum") is not None:
                _check("auto.blocks: trace_sum", seen["trace_sum"])
        check_whole("auto.steps", _field(values, "steps"), 0, LEARNING_TURNS)
        clients = _field(values, "effective_clients")
        _check("auto.effective_clients", clients, 1, federation.clients)
        _check("auto.factor", _field(values, "factor"), LEAST_FACTOR, 1)
        _check("auto.first_loss", _field(values, "first_loss"))
        found = _before_rounds(values, federation, directions)
        if not all(0 < rate < math.inf for rate in found.lr):
            raise ValueError(f"auto leads to lr = {found.lr}; each has to be a number above 0")
        return found


_BLOCK = (
    "weight_rms",
    "turns",
    "square_sum",
    "trace_sum",
    "smoothed_square",
    "smoothed_eigenvalue",
)


def _before_rounds(
    values: dict[str, Any], federation: FederationConfig, directions: Sequence[int]
) -> FoundRates:
    """Create the policy before its first round, from valid values of `FoundRates.to_dict`."""
    return FoundRates(
        blocks=[
            BlockStatistics(**{name: seen[name] for name in _BLOCK}, directions=count)
            for seen, count in zip(values["blocks"], directions, strict=True)
        ],
        losses=LossMonitor(
            steps=values["steps"],
            varies=federation.samples,
            local_steps=federation.local_steps,
            first_mean=values["first_loss"],
        ),
        settings=_rate_settings(values["effective_clients"], federation),
        factor=values["factor"],
    )


def collect(
    known: CentralPolicy,
    sizes: Sequence[int],
    federation: FederationConfig,
    directions: Sequence[int],
) -> FoundRates:
    """Collect the first round's rates from the `LEARNING_TURNS` steps before it.

    Args:
        known: the policy of those steps, after the last one, or so far (`optimizers.probing`).
        sizes: the clients' numbers of examples.
        federation: the run's settings.
        directions: each block's number of directions in a step.

    Raises:
        ValueError: a header cannot hold what the steps have shown; the message names the value.
    """
    rounds = _rate_settings(effective_clients(sizes, federation), federation)
    found = FoundRates(known.blocks, known.losses, rounds, known.factor)
    # restored from the header's values, so that a resumed run has exactly the same state
    return FoundRates.from_dict(found.to_dict(), federation, directions)


def probe_clients(sizes: Sequence[int], weighting: Weighting) -> list[int]:
    """Choose `LEARNING_TURNS` clients, each of which represents an equal part of the update.

    A client may be chosen several times. Neighbouring parts do not follow one another.

    Args:
        sizes: the clients' numbers of examples.
        weighting: the clients' weighting.

    Returns:
        Indices into `sizes`.
    """
    ends = np.cumsum(sizes if weighting == "examples" else [1] * len(sizes))
    count = LEARNING_TURNS
    places = [(3 * step % count + 0.5) / count for step in range(count)]
    return [int(np.searchsorted(ends, place * ends[-1], side="right")) for place in places]


def effective_clients(sizes: Sequence[int], federation: FederationConfig) -> float:
    """Return the effective number of clients over whose directions a round's update is the mean.

    It is Kish's effective sample size 1 / sum_c w_c^2 of the clients' shares w_c (Survey Sampling,
    1965), times the share of clients that take part in a round, and at least 1. With shared seeds
    it is 1.

    Args:
        sizes: the clients' numbers of examples.
        federation: says how clients are weighted, and how many take part.
    """
    if federation.seeds == "shared":
        return 1.0
    counts = sizes if federation.weighting == "examples" else [1] * len(sizes)
    clients = sum(counts) ** 2 / sum(count**2 for count in counts)
    return max(1.0, clients * federation.participants / federation.clients)


def root_mean_square(report: Report) -> list[float]:
    """Return each direction's root mean square projected gradient, over the steps taken."""
    values = report.gradients.values.astype(np.float64)
    return [float(size) for size in np.sqrt(np.mean(values**2, axis=0))]


def median(values: Sequence[float], shares: Sequence[float]) -> float:
    """Return the weighted lower median.

    It is the smallest value that has at least half of the shares, together with the values below.

    Args:
        values: the values, in any order.
        shares: the weight of each.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    below = np.cumsum([shares[place] for place in order])
    return values[order[int(np.searchsorted(below, below[-1] / 2))]]


def _rate_settings(clients: float, federation: FederationConfig) -> RateSettings:
    return RateSettings(last_leads=True, clients=clients, local_steps=federation.local_steps)


def _check(name: str, value: object, low: float = -ABSURD, high: float = ABSURD) -> None:
    """Raise ValueError unless `value` is a number from `low` to `high`, and not absurdly small."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or 0 < abs(value) < 1 / ABSURD:  # type: ignore[operator,arg-type]
        raise ValueError(f"{name} is {value!r}; it has to be a number from {low:g} to {high:g}")


def _field(values: Any, name: str) -> Any:
    if not isinstance(values, dict) or name not in values:
        raise ValueError(f"auto has no {name!r}")
    return values[name]

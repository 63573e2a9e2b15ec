"""The federated policy of `lr="auto"`: rates found before the first round, then led by reports.

A round is a turn of every block. Nothing is taken back: a round that was applied stays. What the
policy is told are the rounds' reports, so that a server that goes on after a crash comes to the
same rates, from its journal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from fedspzo.auto_lr.block_statistics import LEARNING_TURNS, BlockStatistics, mean_product
from fedspzo.auto_lr.loss_monitor import LossMonitor
from fedspzo.auto_lr.rates import HALVE, RateSettings, rates
from fedspzo.checks import check_whole
from fedspzo.federated.protocol.messages import Report

from .client import Client, spzo
from .coefficients import weights
from .settings import FederationConfig, OptimizerConfig, Weighting

LEAST_FACTOR = 2.0**-64
"""Rates are not halved further than that."""
ABSURD = 1e100
"""More than a header's numbers can be."""


@dataclass
class FoundRates:
    """Decides a federation's learning rates by what its run has shown so far.

    Attributes:
        blocks: what each block has shown.
        losses: watches the rounds' losses.
        settings: of the rates: how noisy a round is, and how rates fall.
        factor: what halvings have made of the rates that the bounds allow.
    """

    blocks: list[BlockStatistics]
    losses: LossMonitor
    settings: RateSettings
    factor: float = 1.0

    @property
    def lr(self) -> tuple[float, ...]:
        """The learning rates of the next round, one a block."""
        return rates(self.blocks, self.settings, self.factor)

    def learn(
        self, reports: Sequence[Report], directions: Sequence[int], weighting: Weighting
    ) -> None:
        """Learn from a round.

        What counts is the median over the clients, by their shares of the update: who has less than
        half of it does not set the rates alone.

        Args:
            reports: those that were used.
            directions: each block's number of directions in a step.
            weighting: of the clients.
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
        """Return plain values, before the first round: the entry "auto" of a journal's header."""
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
        """Return the policy that `to_dict` returned the values of, before its first round.

        Args:
            values: an entry "auto", which may be damaged.
            federation: the run's settings.
            directions: each block's number of directions in a step.

        Raises:
            ValueError: a value that `to_dict` does not return, naming it.
        """
        blocks = _field(values, "blocks")
        if not isinstance(blocks, list) or len(blocks) != len(directions):
            raise ValueError(f"auto.blocks is not of {len(directions)} blocks, as lr is")
        for seen in blocks:
            check_whole("auto.blocks: turns", _field(seen, "turns"), 0, LEARNING_TURNS)
            for name in ("weight_rms", "square_sum", "smoothed_square"):
                _check(f"auto.blocks: {name}", _field(seen, name), 0)
            if _field(seen, "trace_sum") is not None:
                _check("auto.blocks: trace_sum", seen["trace_sum"])
        check_whole("auto.steps", _field(values, "steps"), 0, LEARNING_TURNS)
        clients = _field(values, "effective_clients")
        _check("auto.effective_clients", clients, 1, federation.clients)
        _check("auto.factor", _field(values, "factor"), LEAST_FACTOR, 1)
        _check("auto.first_loss", _field(values, "first_loss"))
        return _before_rounds(values, federation, directions)


_BLOCK = ("weight_rms", "turns", "square_sum", "trace_sum", "smoothed_square")


def _before_rounds(
    values: dict[str, Any], federation: FederationConfig, directions: Sequence[int]
) -> FoundRates:
    """Return the policy of a first round, from the values of `FoundRates.to_dict`."""
    return FoundRates(
        blocks=[
            BlockStatistics(**{name: seen[name] for name in _BLOCK}, directions=count)
            for seen, count in zip(values["blocks"], directions, strict=True)
        ],
        losses=LossMonitor(
            steps=values["steps"],
            varies=_losses_vary(federation),
            local_steps=federation.local_steps,
            first_mean=values["first_loss"],
        ),
        settings=_rate_settings(values["effective_clients"], federation),
        factor=values["factor"],
    )


def find(
    settings: OptimizerConfig,
    clients: Sequence[Client],
    federation: FederationConfig,
) -> FoundRates:
    """Find the rates to begin with, by `LEARNING_TURNS` steps; the weights stay.

    Each step is on the examples of the client that stands for the next part of the update: one
    client's alone may be of one label, and one that has few examples tells little.

    Args:
        settings: of the step, resolved but for lr = "auto".
        clients: all of them; the first one's model is used.
        federation: their settings.
    """
    task, replica = clients[0].task, clients[0].replica
    optimizer = spzo(replica.blocks, settings)
    assert optimizer.auto is not None
    # a plan has every block's directions in every step
    losses = LossMonitor(varies=_losses_vary(federation))
    optimizer.auto = replace(optimizer.auto, takes_turns=False, losses=losses)
    sizes = [len(client.examples) for client in clients]
    with replica.local_steps():
        for step, client in enumerate(probe_clients(sizes, federation.counting)):
            batch = clients[client].batch(0, 0, step, federation.batch_size)
            optimizer.step(partial(task.loss, replica.blocks.model, batch))
    known = optimizer.auto
    rounds = _rate_settings(effective_clients(sizes, federation), federation)
    found = FoundRates(known.blocks, known.losses, rounds, known.factor)
    # through the header's values, so that a run which is resumed knows no more and no less
    return _before_rounds(found.to_dict(), federation, settings.directions)


def probe_clients(sizes: Sequence[int], weighting: Weighting) -> list[int]:
    """Choose `LEARNING_TURNS` clients, each for an equal part of the update.

    Neighbours do not follow one another.

    Args:
        sizes: the clients' numbers of examples.
        weighting: of the clients' updates.
    """
    ends = np.cumsum(sizes if weighting == "examples" else [1] * len(sizes))
    count = LEARNING_TURNS
    places = [(3 * step % count + 0.5) / count for step in range(count)]
    return [int(np.searchsorted(ends, place * ends[-1], side="right")) for place in places]


def effective_clients(sizes: Sequence[int], federation: FederationConfig) -> float:
    """Return the effective number of clients whose own directions a round's update is the mean of.

    1 / sum w^2 of the clients' shares w (Kish's effective sample size), for those that take part on
    average; 1 with shared seeds.

    Args:
        sizes: the clients' numbers of examples.
        federation: how they are weighted, and how many take part.
    """
    if federation.seeds == "shared":
        return 1.0
    counts = sizes if federation.weighting == "examples" else [1] * len(sizes)
    clients = sum(counts) ** 2 / sum(count**2 for count in counts)
    return max(1.0, clients * federation.participants / federation.clients)


def root_mean_square(report: Report) -> list[float]:
    """Return the root mean square of each direction's projected gradients, over the steps."""
    values = report.gradients.values.astype(np.float64)
    return [float(size) for size in np.sqrt(np.mean(values**2, axis=0))]


def median(values: Sequence[float], shares: Sequence[float]) -> float:
    """Return the least value that together with those below it has at least half of the shares."""
    order = sorted(range(len(values)), key=values.__getitem__)
    below = np.cumsum([shares[place] for place in order])
    return values[order[int(np.searchsorted(below, below[-1] / 2))]]


def _rate_settings(clients: float, federation: FederationConfig) -> RateSettings:
    return RateSettings(
        last_leads=True, decay=math.sqrt, clients=clients, local_steps=federation.local_steps
    )


def _losses_vary(federation: FederationConfig) -> bool:
    """Whether rounds' losses are of other clients each, and so vary by chance."""
    return federation.participants < federation.clients


def _check(name: str, value: object, low: float = -ABSURD, high: float = ABSURD) -> None:
    """Raise ValueError unless `value` is a number from `low` to `high`, and not absurdly small."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or 0 < abs(value) < 1 / ABSURD:  # type: ignore[operator,arg-type]
        raise ValueError(f"{name} is {value!r}; it has to be a number from {low:g} to {high:g}")


def _field(values: Any, name: str) -> Any:
    if not isinstance(values, dict) or name not in values:
        raise ValueError(f"auto has no {name!r}")
    return values[name]

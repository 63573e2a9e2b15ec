"""A federation's learning rates with `lr="auto"`: found before its first round, and kept sound.

`fedspzo.auto_lr.auto_rate` finds them, and goes on for as long as the run does: to it a round is a
turn of every block. What it is told are the round's reports, so that a server that goes on after a
crash comes to the same rates, from its journal. Steps are not taken back here: a round that was
applied stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from fedspzo.auto_lr.auto_rate import HALVE, AutoRate
from fedspzo.auto_lr.block_statistics import LEARN, BlockStatistics
from fedspzo.checks import LIMIT_16, check_whole
from fedspzo.federated.protocol.messages import Report

from .client import Client, spzo
from .coefficients import weights
from .settings import FederationConfig, OptimizerConfig, Weighting


class FoundRates:
    """Learning rates that follow from what a run has shown so far.

    Args:
        auto: what the steps of before the first round have shown.
        lr: the first round's rates, one a block.
    """

    def __init__(self, auto: AutoRate, lr: Sequence[float]) -> None:
        self._auto = auto
        self._groups = [{"lr": rate} for rate in lr]

    @property
    def lr(self) -> tuple[float, ...]:
        """The next round's, one a block."""
        return tuple(group["lr"] for group in self._groups)

    def learn(
        self, reports: Sequence[Report], directions: Sequence[int], weighting: Weighting
    ) -> None:
        """Take note of a round.

        What counts is the median, by the clients' shares of the update: who has less than half of
        it does not set the rates alone.

        Args:
            reports: those that were used.
            directions: of each block, in a step.
            weighting: of the clients.
        """
        taken = [report for report in reports if report.gradients.steps]
        if not taken:
            return
        shares = weights(taken, weighting)
        sizes = zip(*map(root_mean_square, taken), strict=True)
        typical = iter([median(size, list(shares.values())) for size in sizes])
        gradients = [list(islice(typical, count)) for count in directions]
        count = len(gradients)
        self._auto.learn(self._groups, gradients, [None] * count, [1.0] * count)
        losses = {report.client: report.loss for report in taken if report.loss is not None}
        if losses:
            loss = median(list(losses.values()), [shares[client] for client in losses])
            if self._auto.diverged(loss) and self._auto.factor > LEAST:
                self._auto.scale(self._groups, HALVE)
                self._auto.begin_anew()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, before the first round: what a journal's header holds."""
        auto = self._auto
        blocks = [{name: asdict(seen)[name] for name in _SEEN} for seen in auto.blocks]
        return {**{name: asdict(auto)[name] for name in _AUTO}, "blocks": blocks}

    @classmethod
    def from_dict(
        cls, values: Any, federation: FederationConfig, lr: Sequence[float]
    ) -> FoundRates:
        """What `to_dict` returned, for a federation's first round at these rates.

        Raises:
            ValueError: it returned another thing.
        """
        blocks = _field(values, "blocks")
        if not isinstance(blocks, list) or len(blocks) != len(lr):
            raise ValueError(f"auto.blocks is not of {len(lr)} blocks, as lr is")
        for seen in blocks:
            check_whole("auto.blocks: turns", _field(seen, "turns"), 0, LEARN)
            for name in ("size", "squares", "lately"):
                _check(f"auto.blocks: {name}", _field(seen, name), 0)
            if _field(seen, "traces") is not None:
                _check("auto.blocks: traces", seen["traces"])
        check_whole("auto.steps", _field(values, "steps"), 0, LEARN)
        check_whole("auto.added", _field(values, "added"), 1, LIMIT_16 - 1)
        _check("auto.averaged", _field(values, "averaged"), 1, LIMIT_16 - 1)
        _check("auto.factor", _field(values, "factor"), LEAST, 1)
        _check("auto.first", _field(values, "first"))
        if not isinstance(_field(values, "cut"), bool):
            raise ValueError(f"auto.cut is {values['cut']!r}; it has to be true or false")
        return cls(for_rounds(values, federation), lr)


_AUTO = ("steps", "cut", "averaged", "added", "factor", "first")
_SEEN = ("size", "turns", "squares", "traces", "lately")
LEAST = 2.0**-64
"""Rates are not halved more often than that."""
ABSURD = 1e100
"""More than a header's numbers can be."""


def find(
    settings: OptimizerConfig,
    clients: Sequence[Client],
    federation: FederationConfig,
) -> FoundRates:
    """The rates to begin with, by `rate_bounds.LEARN` steps; the weights stay.

    Each step is on the examples of the client that stands for the next part of the update: one
    client's alone may be of one label, and one that has few examples tells little.

    Args:
        settings: of the step, resolved but for lr = "auto".
        clients: all of them; the first one's model is used.
        federation: their settings.
    """
    task, replica = clients[0].task, clients[0].replica
    optimizer = spzo(replica.blocks, settings)
    auto = optimizer.auto
    assert auto is not None
    auto.central = False  # a plan has every block's directions in every step
    auto.varies = varies(federation)
    sizes = [len(client.examples) for client in clients]
    with replica.local_steps():
        for step, client in enumerate(probe_clients(sizes, federation.counting)):
            batch = clients[client].batch(0, 0, step, federation.batch_size)
            optimizer.step(partial(task.loss, replica.blocks.model, batch))
    auto.averaged = averaged(sizes, federation)
    auto.added = federation.local_steps
    lr = [auto.rate(block, count) for block, count in enumerate(settings.directions)]
    # through the header's values, so that a run which is resumed has no more and no less
    return FoundRates(for_rounds(FoundRates(auto, lr).to_dict(), federation), lr)


def probe_clients(sizes: Sequence[int], weighting: Weighting) -> list[int]:
    """`LEARN` clients, each for an equal part of the update, neighbours not one after another.

    Args:
        sizes: the clients' numbers of examples.
        weighting: of the clients' updates.
    """
    ends = np.cumsum(sizes if weighting == "examples" else [1] * len(sizes))
    places = [(3 * step % LEARN + 0.5) / LEARN for step in range(LEARN)]
    return [int(np.searchsorted(ends, place * ends[-1], side="right")) for place in places]


def for_rounds(values: dict[str, Any], federation: FederationConfig) -> AutoRate:
    """What the first round begins with, from `FoundRates.to_dict`: rounds are its steps."""
    return AutoRate(
        central=False,
        varies=varies(federation),
        **{name: values[name] for name in _AUTO},
        blocks=[
            BlockStatistics(**{name: seen[name] for name in _SEEN}) for seen in values["blocks"]
        ],
    )


def varies(federation: FederationConfig) -> bool:
    """Whether rounds' losses are of other clients each, and so vary by chance."""
    return federation.participants < federation.clients


def averaged(sizes: Sequence[int], federation: FederationConfig) -> float:
    """Of how many clients' own directions a round's update is the mean: 1 with shared seeds.

    1 / sum w^2 of the clients' shares w (Kish's effective sample size), for those that take part on
    average.

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
    """Of each direction's projected gradients, over a client's steps."""
    values = report.gradients.values.astype(np.float64)
    return [float(size) for size in np.sqrt(np.mean(values**2, axis=0))]


def median(values: Sequence[float], shares: Sequence[float]) -> float:
    """The least value that together with those below it has at least half of the shares."""
    order = sorted(range(len(values)), key=values.__getitem__)
    below = np.cumsum([shares[place] for place in order])
    return values[order[int(np.searchsorted(below, below[-1] / 2))]]


def _check(name: str, value: object, low: float = -ABSURD, high: float = ABSURD) -> None:
    """Raise ValueError unless `value` is a number from `low` to `high`, and not absurdly small."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or 0 < abs(value) < 1 / ABSURD:  # type: ignore[operator,arg-type]
        raise ValueError(f"{name} is {value!r}; it has to be a number from {low:g} to {high:g}")


def _field(values: Any, name: str) -> Any:
    if not isinstance(values, dict) or name not in values:
        raise ValueError(f"auto has no {name!r}")
    return values[name]

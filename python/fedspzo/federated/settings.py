"""The settings of a federated run: frozen dataclasses, checked when they are made.

Nothing heavy is imported here, so a mistake in a configuration is reported at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Estimator = Literal["balanced", "coupled", "coupled-loo", "mezo"]
Sides = Literal["one", "two"]
Rounding = Literal["nearest", "stochastic"]
Evaluation = Literal["in_place", "layerwise"]
Seeds = Literal["per-client", "shared"]
Weighting = Literal["examples", "uniform"]
Partition = Literal["iid", "dirichlet"]

LIMIT_16, LIMIT_32, LIMIT_64 = 2**16, 2**32, 2**64
"""Bounds of the fields of the messages (docs/federation.md)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How a client takes a step: the settings of `SPZO`.

    Attributes:
        lr: learning rate of block 1 (or of the only block).
        lr2: learning rate of block 2. None: 2 P2 lr.
        estimator: how the projected gradients are formed (docs/estimators.md).
        sides: one- or two-sided differences. None: by dtype, "one" for float32.
        perturbations: (P1, P2); for `mezo` one number. None: (1, C1/C2), measured in the first
            step; `mezo`: 1.
        eps: scale of the finite difference. None: by dtype.
        rounding: of the update, to the dtype of the weights. None: by dtype, "nearest" for
            float32, "stochastic" for bfloat16 and float16.
        evaluation: "in_place", or "layerwise", which leaves no rounding errors in the weights.
            None: by dtype, "layerwise" for bfloat16 and float16.
        at: where the network is cut: "auto", the index of block 2's first layer, or its name.
    """

    lr: float = 1e-4
    lr2: float | None = None
    estimator: Estimator = "balanced"
    sides: Sides | None = None
    perturbations: int | tuple[int, int] | None = None
    eps: float | None = None
    rounding: Rounding | None = None
    evaluation: Evaluation | None = None
    at: int | str = "auto"

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, get_args(Estimator))
        optional = {"sides": Sides, "rounding": Rounding, "evaluation": Evaluation}
        for name, choices in optional.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), get_args(choices))
        for name in ("lr", "lr2", "eps"):
            value = getattr(self, name)
            if value is not None or name == "lr":
                check_positive(name, value)
        if self.estimator == "mezo" and self.lr2 is not None:
            raise ValueError(f"lr2 is {self.lr2!r}, but 'mezo' has one block; leave lr2 out")
        if self.estimator.startswith("coupled") and self.sides == "one":
            raise ValueError(
                f"sides is 'one', but {self.estimator!r} is two-sided; leave sides out or set 'two'"
            )
        self._check_perturbations()

    def _check_perturbations(self) -> None:
        value = self.perturbations
        if value is None:
            return
        if self.estimator == "mezo":
            check_whole("perturbations", value, 1, LIMIT_16 - 1)
            return
        if not isinstance(value, tuple) or len(value) != 2:
            raise ValueError(
                f"perturbations is {value!r}; give a pair [P1, P2] for {self.estimator!r}"
            )
        for name, count in zip(("P1", "P2"), value, strict=True):
            check_whole(f"perturbations ({name})", count, 1, LIMIT_16 - 1)
        if sum(self.directions) >= LIMIT_16:
            raise ValueError(f"perturbations is {value!r}; at most {LIMIT_16 - 1} directions fit")
        two_sided = self.estimator == "balanced" and self.sides == "two"
        if value[1] < 2 and (two_sided or self.estimator == "coupled-loo"):
            raise ValueError(
                f"perturbations is {value!r}, but {self.estimator!r} needs P2 >= 2 here; raise P2"
            )

    @property
    def directions(self) -> tuple[int, ...]:
        """How many directions each block has in one step, block 1 first.

        Raises:
            ValueError: `perturbations` is None: it is measured in the first step.
        """
        if self.perturbations is None:
            raise ValueError("perturbations is None; give them, or measure them first")
        if isinstance(self.perturbations, int):
            return (self.perturbations,)
        p1, p2 = self.perturbations
        return (p1, p1 * p2)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rate of each block, with the rule for `lr2` applied."""
        if self.estimator == "mezo":
            return (self.lr,)
        if self.lr2 is not None:
            return (self.lr, self.lr2)
        if not isinstance(self.perturbations, tuple):
            raise ValueError("lr2 follows from perturbations, which is None; give one of them")
        return (self.lr, 2 * self.perturbations[1] * self.lr)


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """Who takes part in a run, how often, and how the parts are put together.

    Attributes:
        clients: number of clients.
        rounds: number of rounds.
        local_steps: steps a client takes in a round before it reports.
        batch_size: examples in a client's step.
        participation: share of the clients that take part in a round, in (0, 1].
        partition: how examples are dealt to clients.
        alpha: concentration of the Dirichlet partition; small: each client has few labels.
        seeds: "per-client": every client has directions of its own. "shared": all clients of a
            round have the same ones and their scalars are averaged, so that a round's record is
            as short as one client's.
        weighting: of the clients' updates: by their number of examples, or all alike.
        seed: the run's seed. Everything random in the run follows from it.
    """

    clients: int
    rounds: int
    local_steps: int = 1
    batch_size: int = 8
    participation: float = 1.0
    partition: Partition = "iid"
    alpha: float = 1.0
    seeds: Seeds = "per-client"
    weighting: Weighting = "examples"
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("clients", self.clients, 1, LIMIT_16 - 1)
        check_whole("rounds", self.rounds, 1, LIMIT_32 - 1)
        check_whole("local_steps", self.local_steps, 1, LIMIT_16 - 1)
        check_whole("batch_size", self.batch_size, 1, LIMIT_32 - 1)
        check_whole("seed", self.seed, 0, LIMIT_64 - 1)
        check_positive("participation", self.participation)
        if self.participation > 1:
            raise ValueError(f"participation is {self.participation!r}; give a share of at most 1")
        check_positive("alpha", self.alpha)
        check_choice("partition", self.partition, get_args(Partition))
        check_choice("seeds", self.seeds, get_args(Seeds))
        check_choice("weighting", self.weighting, get_args(Weighting))

    @property
    def participants(self) -> int:
        """Clients in a round: the share rounded, at least one."""
        return max(1, round(self.participation * self.clients))


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless `value` is an int with low <= value <= high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give a whole number from {low} to {high}")


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a finite number above zero."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; give a finite number above 0")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")

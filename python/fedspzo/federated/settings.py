"""The settings of a federated run: frozen dataclasses that check their values.

They import neither torch nor NumPy, so that a mistake in a configuration is reported at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from fedspzo import estimators
from fedspzo.checks import (
    LIMIT_8,
    LIMIT_16,
    LIMIT_32,
    LIMIT_64,
    check_choice,
    check_positive,
    check_whole,
)
from fedspzo.choices import EvaluationMode, Rounding, Sides, Stream
from fedspzo.estimators.anchored import Anchored
from fedspzo.estimators.defaults import default_lr_scales

from .aggregation import RULES, AggregationRule, check_rule

Seeds = Literal["per-client", "shared"]
Weighting = Literal["examples", "uniform"]
Partition = Literal["iid", "dirichlet"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of a client's step, as `SPZO` takes them.

    Attributes:
        lr: "auto" (default): rates are found before the first round, on the clients' examples, and
            adapted by the reports (`found_rates`). Or the learning rate of block 1; block b then
            gets D_b / D_1 times it, D_b being its number of directions in a step. Or a tuple with
            one rate for each block.
        estimator: name of the estimator of projected gradients (docs/estimators.md).
        sides: "one" or "two": one- or two-sided differences. None: by dtype, "one" for float32.
        perturbations: one number for each block; one int for a joint estimator, such as `mezo`.
            None: chosen from costs that are measured in the first step, with P1 = 1
            (docs/estimators.md); 1 for a joint estimator.
        eps: scale of the perturbations. None: by dtype.
        rounding: rounding of the update to the weights' dtype. None: "nearest" for float32,
            "stochastic" for bfloat16 and float16.
        evaluation: "in_place", or "layerwise", which leaves no rounding errors in the weights.
            None: by dtype, "layerwise" for bfloat16 and float16.
        stream: the noise stream of the directions: "normal-v1" (default), or "rademacher-v1", signs
            (docs/noise.md).
        newton: the last block takes damped Newton steps (`SPZO`). None: it does if lr is "auto" and
            these steps are cheap.
        at: the place of the cut: "auto"; or the first layer of block 2, as its index, its name or
            "head"; or a tuple with the first layer of each block but the first.

    Raises:
        ValueError: a value is out of range, or does not fit another; the message names it and the
            remedy.
    """

    lr: float | tuple[float, ...] | Literal["auto"] = "auto"
    estimator: str = "anchored"
    sides: Sides | None = None
    perturbations: int | tuple[int, ...] | None = None
    eps: float | None = None
    rounding: Rounding | None = None
    evaluation: EvaluationMode | None = None
    stream: Stream = "normal-v1"
    newton: bool | None = None
    at: int | str | tuple[int | str, ...] = "auto"

    def __post_init__(self) -> None:
        estimators.find(self.estimator)
        optional = {"sides": Sides, "rounding": Rounding, "evaluation": EvaluationMode}
        for name, choices in optional.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), get_args(choices))
        check_choice("stream", self.stream, get_args(Stream))
        if self.lr != "auto":
            for rate in self.lr if isinstance(self.lr, tuple) else (self.lr,):
                check_positive("lr", rate)
        if self.eps is not None:
            check_positive("eps", self.eps)
        if not isinstance(self.newton, bool | None):
            raise TypeError(f"newton is {self.newton!r}; give true or false")
        if self.newton and not issubclass(estimators.find(self.estimator), Anchored):
            raise ValueError(
                f"newton is True, but estimator is {self.estimator!r}; leave one of them out"
            )
        self._check_blocks()

    def _check_blocks(self) -> None:
        """Raise ValueError unless the settings with one value for each block fit together."""
        value, lr = self.perturbations, self.lr
        kind = estimators.find(self.estimator)
        if kind.joint:
            if isinstance(lr, tuple) and len(lr) != 1:
                raise ValueError(
                    f"lr is {lr!r}, but {self.estimator!r} has one block; give one number"
                )
            if value is not None:
                check_whole("perturbations", value, 1, LIMIT_16 - 1)
        elif isinstance(lr, tuple) and len(lr) < 2:
            raise ValueError(f"lr is {lr!r}; give one number, or one for each of several blocks")
        elif value is not None:
            if not isinstance(value, tuple) or not 1 < len(value) < LIMIT_8:
                raise ValueError(
                    f"perturbations is {value!r}; give one number a block, [P1, P2], for"
                    f" {self.estimator!r}, and at most {LIMIT_8 - 1}"
                )
            for number, count in enumerate(value, 1):
                check_whole(f"perturbations (P{number})", count, 0, LIMIT_16 - 1)
            if isinstance(lr, tuple) and len(lr) != len(value):
                raise ValueError(
                    f"lr is {lr!r}, perturbations is {value!r}; give each block one of both"
                )
        if value is not None and not 0 < sum(self.directions) < LIMIT_16:
            raise ValueError(
                f"perturbations is {value!r}; give 1 to {LIMIT_16 - 1} directions in all"
            )

    @property
    def directions(self) -> tuple[int, ...]:
        """Each block's number of directions in a step, block 1 first.

        Raises:
            ValueError: `perturbations` is None, to be chosen in the first step.
        """
        if self.perturbations is None:
            raise ValueError("perturbations is None; give them, or measure them first")
        counts = self.perturbations
        kind = estimators.find(self.estimator)
        return kind(
            sides=self.sides or kind.default_sides(low_precision=False),
            perturbations=(counts,) if isinstance(counts, int) else counts,
        ).directions

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rate of each block. A single `lr` is scaled by D_b / D_1.

        Raises:
            ValueError: a single `lr` needs `perturbations`, which is None; or `lr` is "auto".
        """
        if self.lr == "auto":
            raise ValueError("lr is 'auto'; give a number, or find it first")
        if isinstance(self.lr, tuple):
            return self.lr
        return tuple(self.lr * scale for scale in default_lr_scales(self.directions))


@dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """Settings of a federated run: its clients, rounds and aggregation.

    Attributes:
        clients: number of clients.
        rounds: number of rounds.
        local_steps: number of steps that a client takes in a round before it reports.
        batch_size: number of examples in a client's step.
        participation: share of the clients that take part in a round, in (0, 1].
        partition: "iid" or "dirichlet": the way in which examples are dealt to clients.
        alpha: concentration of the Dirichlet partition. If it is small, a client has few labels.
        seeds: "per-client": every client has directions of its own. "shared": all clients of a
            round have the same directions and their scalars are aggregated, so a round's record is
            as short as one client's.
        weighting: "examples": updates are weighted by the clients' numbers of examples. "uniform":
            all have the same weight.
        aggregation: rule for scalars along shared directions. "mean"; or "trimmed-mean", "median"
            or "krum", which a minority of liars cannot break and which weight all clients equally;
            or a rule of your own, or its name (`register_rule`, docs/federation.md).
        byzantine: share of the clients that "trimmed-mean" and "krum" assume to lie, in [0, 1/2).
        clip: bound on the size of a client's scalars, in multiples of the usual size, at least 1
            (`clipping.clip`). The default spares all but absurdly large scalars.
        quorum: share of a round's clients that must report, in (0, 1]. At least one must.
        retries: number of times that silent clients are asked again before the run fails.
        timeout: seconds within which a client has to answer, else the round goes on without it.
            None (default): no limit. Which clients are late may differ from run to run, and so may
            the weights; the journal has what happened.
        seed: the run's seed. All randomness of the run follows from it, except that of privacy.

    Raises:
        ValueError: a value is out of range, or does not fit another; the message names it and the
            remedy.
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
    aggregation: str | AggregationRule = "mean"
    byzantine: float = 0.3
    clip: float = 100.0
    quorum: float = 0.5
    retries: int = 2
    timeout: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("clients", self.clients, 1, LIMIT_16 - 1)
        check_whole("rounds", self.rounds, 1, LIMIT_32 - 1)
        check_whole("local_steps", self.local_steps, 1, LIMIT_16 - 1)
        check_whole("batch_size", self.batch_size, 1, LIMIT_32 - 1)
        check_whole("seed", self.seed, 0, LIMIT_64 - 1)
        check_whole("retries", self.retries, 0, LIMIT_16 - 1)
        for name in ("participation", "quorum"):
            share = getattr(self, name)
            check_positive(name, share)
            if share > 1:
                raise ValueError(f"{name} is {share!r}; give a share of at most 1")
        if self.timeout is not None:
            check_positive("timeout", self.timeout)
        check_positive("clip", self.clip)
        if self.clip < 1:
            raise ValueError(f"clip is {self.clip!r}; give at least 1, the usual size itself")
        check_positive("alpha", self.alpha)
        check_choice("partition", self.partition, get_args(Partition))
        check_choice("seeds", self.seeds, get_args(Seeds))
        check_choice("weighting", self.weighting, get_args(Weighting))
        self._check_aggregation()

    def _check_aggregation(self) -> None:
        if isinstance(self.aggregation, str):
            check_choice("aggregation", self.aggregation, tuple(RULES))
        else:
            check_rule(self.aggregation)
        if self.rule.shared_seeds and self.seeds != "shared":
            raise ValueError(
                f"aggregation is {self.rule.name!r}, which compares clients along the same"
                " directions; set seeds = 'shared' too, or aggregation = 'mean'"
            )
        if not isinstance(self.byzantine, int | float) or not 0 <= self.byzantine < 0.5:
            raise ValueError(f"byzantine is {self.byzantine!r}; give a share from 0, below 0.5")

    @property
    def rule(self) -> AggregationRule:
        """The aggregation rule."""
        return RULES[self.aggregation] if isinstance(self.aggregation, str) else self.aggregation

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name, as plain values. The rule is given by its name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "aggregation": self.rule.name}

    @property
    def participants(self) -> int:
        """Number of clients in a round: their share, rounded, and at least one."""
        return max(1, round(self.participation * self.clients))

    @property
    def samples(self) -> bool:
        """Each round samples its clients, so that its loss varies by chance."""
        return self.participants < self.clients

    @property
    def counting(self) -> Weighting:
        """The weighting in the aggregation. It is "uniform" if the rule ignores `weighting`."""
        return self.weighting if self.rule.weighted else "uniform"

    @property
    def needed(self) -> int:
        """Number of clients that must report: the quorum, rounded up."""
        return max(1, math.ceil(self.quorum * self.participants - 1e-9))

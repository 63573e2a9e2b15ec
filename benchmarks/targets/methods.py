"""The methods that race, each with the settings that are not tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedspzo.baselines import METHODS, last_block
from fedspzo.federated import FederationConfig, OptimizerConfig, run

from .fzoo import Fzoo
from .problems import Cut


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: for people, and the key of its results; its learning rate is tuned unless "auto".
        cut: where the model is split; None: it is not.
        settings: of the optimizer, but for lr.
        first: where on the grid of learning rates to look first, a power of two.
        federated: runs a federation; None: central only.
        seeds: directions common to all clients, or each client's own.
        problems: the names of those that it races on; none: all.
    """

    name: str
    cut: Cut
    settings: dict[str, Any]
    first: int = -10
    federated: Callable[..., Any] = run
    seeds: str = "per-client"
    problems: tuple[str, ...] = ()

    def races_on(self, problem: str) -> bool:
        """Whether it takes part in the problem of that name."""
        return problem in (self.problems or (problem,))

    def optimizer(self, lr: float) -> OptimizerConfig:
        """The settings at a learning rate."""
        return OptimizerConfig(**{"lr": lr, **self.settings})


def _mezo(count: int, sides: str) -> dict[str, Any]:
    return {"estimator": "mezo", "perturbations": count, "sides": sides}


WHOLE = "head"
"""The cut of the methods that were tuned while all that comes after the layers was the last block.
On a language model it is the default cut too; on MiniLM that leaves out the pooler."""
_RULE, _NEW = ("decoder", "encoder"), ("minilm",)
_SIGNS = Method(
    "FedSPZO, lr auto, signs",
    "auto",
    {"lr": "auto", "stream": "rademacher-v1"},
    problems=("reviews", "sentences", "decoder", "minilm"),
)

BASELINE = "MeZO"
CENTRAL = (
    Method(BASELINE, None, _mezo(1, "two")),
    Method("MeZO, 2 one-sided", None, _mezo(2, "one")),
    Method("MeZO, 4 one-sided", None, _mezo(4, "one"), -9),
    Method("MeZO, 16 one-sided", None, _mezo(16, "one"), -8),
    Method("MeZO, 4 one-sided, lr auto", None, {**_mezo(4, "one"), "lr": "auto"}),
    Method(
        "FZOO, 8 one-sided",
        None,
        {"estimator": Fzoo.name, "perturbations": 8, "sides": "one"},
        -4,
        problems=("reviews",),
    ),
    Method("coupled, two blocks", -1, {"estimator": "coupled"}),
    Method("balanced, two blocks", -1, {"estimator": "balanced"}),
    Method("FedSPZO", WHOLE, {}, -9),
    Method("FedSPZO, lr auto", "auto", {"lr": "auto"}),
    _SIGNS,
    Method("FedSPZO, lr auto, whole head", WHOLE, {"lr": "auto"}, problems=_NEW),
    Method("last block alone", WHOLE, {"perturbations": (0, last_block.DIRECTIONS)}),
    Method("last block alone, lr auto", "auto", {"perturbations": (0, 22), "lr": "auto"}),
)

# MiniLM's head is new: as many as `examples/minilm` names, where the rule has 8
_MORE = {"perturbations": (1, 32)}

FEDERATED = (
    Method("FedMeZO", None, _mezo(1, "two"), -8, federated=METHODS["fedmezo"]),
    Method("DeComFL, 4 one-sided", None, _mezo(4, "one"), -8, federated=METHODS["decomfl"]),
    Method("FedSPZO", WHOLE, {}, -8, problems=_RULE),
    Method("FedSPZO, lr auto", "auto", {"lr": "auto"}),
    _SIGNS,
    Method("FedSPZO, lr auto, whole head", WHOLE, {**_MORE, "lr": "auto"}, problems=_NEW),
    Method("FedSPZO, P2 = 32", WHOLE, _MORE, -8, problems=_NEW),
    Method("FedSPZO, P2 = 32, shared seeds", WHOLE, _MORE, -8, seeds="shared", problems=_NEW),
)


def central(name: str) -> Method:
    """The method of that name in central training."""
    return next(method for method in CENTRAL if method.name == name)


def federation(
    method: Method, *, clients: int, rounds: int, local_steps: int, batch: int, seed: int
) -> FederationConfig:
    """The federation's settings for a method."""
    return FederationConfig(
        clients=clients,
        rounds=rounds,
        local_steps=local_steps,
        batch_size=batch,
        seeds=method.seeds,  # type: ignore[arg-type]
        seed=seed,
    )

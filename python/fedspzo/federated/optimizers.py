"""The optimizer of a client's steps, and those of its settings that follow from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedspzo import estimators
from fedspzo.auto_lr.loss_monitor import LossMonitor
from fedspzo.blocks.cut import Blocks
from fedspzo.estimators.anchored import Anchored
from fedspzo.estimators.defaults import (
    FEDERATED_FIRST,
    FEDERATED_MOST,
    can_take_newton_steps,
    default_perturbations,
    newton_perturbations,
)
from fedspzo.estimators.step_report import StepReport
from fedspzo.optim.spzo import SPZO
from fedspzo.privacy import Mechanism

from .protocol.probes import StepLosses
from .settings import OptimizerConfig


def spzo(
    blocks: Blocks,
    settings: OptimizerConfig,
    *,
    seed: int = 0,
    privacy: Mechanism | None = None,
) -> SPZO:
    """Create the optimizer that the settings describe.

    Args:
        blocks: the model.
        settings: the optimizer's settings.
        seed: the seed of its directions.
        privacy: makes its steps differentially private. Default None: not private.

    Raises:
        ValueError: a joint estimator, such as `mezo`, with a model cut into blocks, or another
            estimator with one that is not.
    """
    if estimators.find(settings.estimator).joint and len(blocks.groups) != 1:
        raise ValueError(
            f"estimator is {settings.estimator!r}, but the model is cut into"
            f" {len(blocks.groups)} blocks; pass Blocks.single(model)"
        )
    optimizer = SPZO(
        blocks,
        lr=settings.lr,
        estimator=settings.estimator,
        sides=settings.sides,
        perturbations=settings.perturbations,
        eps=settings.eps,
        seed=seed,
        rounding=settings.rounding,
        evaluation=settings.evaluation,
        stream=settings.stream,
        newton=settings.newton,
        privacy=privacy,
    )
    # a client that was stopped, or has a process for each message, would look more often
    optimizer.looks_wider = False
    return optimizer


def fitting(blocks: Blocks, settings: OptimizerConfig) -> SPZO:
    """Create the optimizer that the settings describe, or say why they do not fit the model.

    Raises:
        ValueError: the model is one block, and the estimator is for several; or as for `spzo`.
    """
    if len(blocks.groups) == 1 and not estimators.find(settings.estimator).joint:
        raise ValueError(
            f"estimator is {settings.estimator!r}, but the model is one block; pass"
            " estimator='mezo', and perturbations=N for N directions"
        )
    return spzo(blocks, settings)


def measures(settings: OptimizerConfig) -> bool:
    """Tell whether `resolve` takes a step, to choose `perturbations` or `newton`."""
    joint = estimators.find(settings.estimator).joint
    return not joint and (settings.perturbations is None or _chooses_newton(settings))


def _chooses_newton(settings: OptimizerConfig) -> bool:
    counts = settings.perturbations
    fits = not isinstance(counts, tuple) or can_take_newton_steps(counts[-1], share=0.0)
    may = settings.lr == "auto" and issubclass(estimators.find(settings.estimator), Anchored)
    return settings.newton is None and may and fits


def resolve(
    settings: OptimizerConfig, blocks: Blocks, cost_shares: Sequence[float] = ()
) -> OptimizerConfig:
    """Fill in the settings that depend on the model and its dtype, so that a message can hold them.

    If `perturbations` or `newton` is None, it is chosen from the costs of the blocks. lr="auto"
    stays: see `first_steps`.

    Args:
        settings: the settings as the user gave them.
        blocks: the model.
        cost_shares: as a step measured them (`SPZO.cost_shares`). They are needed if `measures`
            says so.

    Raises:
        ValueError: the model is one block, and the estimator is for several; or the cost shares are
            needed, and are not of this model's blocks.
    """
    kind = estimators.find(settings.estimator)
    optimizer = fitting(blocks, settings)
    counts, newton = settings.perturbations, settings.newton
    if not _chooses_newton(settings):
        newton = bool(newton)
    if measures(settings):
        number = len(blocks.groups)
        if len(cost_shares) not in (number - 1, number):
            raise ValueError(
                f"there are {len(cost_shares)} cost shares, the model has {number} blocks; measure"
                " them where the model is cut alike"
            )
        if counts is None:
            counts = default_perturbations(
                kind, tuple(cost_shares), number, FEDERATED_FIRST, FEDERATED_MOST
            )
            if newton is not False:
                counts = (*counts[:-1], newton_perturbations(cost_shares[-1]) or counts[-1])
        if newton is None:
            assert isinstance(counts, tuple)
            newton = can_take_newton_steps(counts[-1], cost_shares[-1])
    if counts is None:
        counts = optimizer.param_groups[0]["perturbations"]
    filled = replace(
        settings,
        perturbations=counts,
        newton=bool(newton),
        sides=optimizer.sides,
        rounding=optimizer.rounding,
        at="auto",
    )
    return filled if filled.lr == "auto" else replace(filled, lr=filled.learning_rates)


def probing(blocks: Blocks, settings: OptimizerConfig, *, samples: bool) -> SPZO:
    """Create the optimizer of the steps before the first round (`protocol.probes`).

    Args:
        blocks: the model.
        settings: the steps' settings, resolved. With lr="auto" they find rates.
        samples: each round samples its clients, so that its loss varies by chance.
    """
    optimizer = spzo(blocks, settings)
    if optimizer.auto is not None:
        # in a federated step every block moves, so no block waits for its turn here
        losses = LossMonitor(varies=samples)
        optimizer.auto = replace(optimizer.auto, takes_turns=False, losses=losses)
    return optimizer


def losses_of(report: StepReport, dtype: torch.dtype) -> StepLosses:
    """Return the losses of a step, whose closure returns this dtype, as `retake` wants them."""
    values = np.array(report.losses, np.float64)
    return StepLosses(str(dtype).removeprefix("torch."), values)


def retake(optimizer: SPZO, losses: StepLosses, *, move: bool = True) -> None:
    """Let an optimizer of `probing` take a step again that another client took.

    Args:
        optimizer: the optimizer, after the steps before.
        losses: the step's losses, as they came in a message.
        move: False: no weight is read or written. Default True.

    Raises:
        ValueError: these are not the losses of such a step.
    """
    optimizer.retake(torch.tensor(losses.values, dtype=getattr(torch, losses.dtype)), move=move)

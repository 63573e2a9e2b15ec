"""A client: private examples, and steps that leave nothing behind but scalars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor, nn

from fedspzo import estimators
from fedspzo.blocks.cut import Blocks
from fedspzo.estimators.defaults import FEDERATED_FIRST, FEDERATED_MOST
from fedspzo.evaluation.closures import Closure
from fedspzo.federated.protocol.messages import Plan, Report
from fedspzo.federated.protocol.updates import (
    EVERYBODY,
    Scalars,
    batch_seed,
    client_seed,
    first_step,
    record,
)
from fedspzo.journal.replica import Replica
from fedspzo.optim.spzo import SPZO
from fedspzo.privacy import Mechanism

from .partition import draw
from .protocol import download
from .settings import OptimizerConfig


class Task(Protocol):
    """What is learned."""

    def collate(self, examples: list[Any]) -> Any:
        """A batch of these examples."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The model's scalar loss on a batch."""


class PrivateTask(Task, Protocol):
    """A task that a private client needs."""

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of each example of a batch (B,), each of that example alone."""


class DigestError(RuntimeError):
    """Weights that should be equal are not."""


class Client:
    """Takes part in rounds with its own examples.

    Args:
        client: its id.
        replica: the model, at any round; clients in one process may share it, in turn.
        examples: its private data.
        task: how to make a batch of them, and its loss.
        privacy: of these examples: makes its steps differentially private (docs/privacy.md). The
            task then is a `PrivateTask`.

    Raises:
        ValueError: `examples` is empty; or `privacy` or `task` do not fit.
    """

    def __init__(
        self,
        client: int,
        replica: Replica,
        examples: Sequence[Any],
        task: Task,
        *,
        privacy: Mechanism | None = None,
    ) -> None:
        if not len(examples):
            raise ValueError(f"client {client} has no examples; give each client at least one")
        if privacy is not None and privacy.examples != len(examples):
            raise ValueError(
                f"privacy is for {privacy.examples} examples, client {client} has {len(examples)};"
                " give each client a Mechanism of its own"
            )
        if privacy is not None and not hasattr(task, "losses"):
            raise ValueError(
                f"{type(task).__name__} has no losses(model, batch), which privacy needs: the loss"
                " of each example, (B,)"
            )
        self.client = client
        self.replica = replica
        self.privacy = privacy
        self.examples = examples
        self.task = task
        self._settings: OptimizerConfig | None = None
        self._answered: tuple[Plan, Report] | None = None
        self._optimizer: SPZO | None = None

    def handle(self, plan: Plan, weights: Iterable[bytes] = ()) -> Report:
        """Catch up, take the plan's steps, return to the global weights, and report.

        The replica is at the plan's round afterwards, also when a step raises.

        Args:
            plan: what to do.
            weights: the messages of a download, if the plan says so.

        Raises:
            ValueError: the plan is for another client, or does not follow the replica's round; or
                a download is not whole.
            DigestError: after catching up the weights are not the server's.
        """
        if plan.client != self.client:
            raise ValueError(f"plan is for client {plan.client}, this is client {self.client}")
        if plan.download and self.replica.round < plan.round:
            download.load(self.replica, plan.round, plan.digest, weights)
        self.replica.catch_up(
            record(
                update,
                run_seed=plan.run_seed,
                local_steps=plan.local_steps,
                optimizer=plan.optimizer,
            )
            for update in plan.updates
            if update.round >= self.replica.round  # one that shares the replica was here before
        )
        if self.replica.round != plan.round:
            raise ValueError(
                f"plan is for round {plan.round}, client {self.client} is at round"
                f" {self.replica.round}; send the updates from there on"
            )
        self.replica.snapshot()
        digest = self.replica.digest()
        if digest != plan.digest:
            raise DigestError(
                f"client {self.client} has weights with digest {digest} in round {plan.round}, the"
                f" server's have {plan.digest}; start both from the same base weights, cut at the"
                " same layer"
            )
        asked = replace(plan, updates=(), download=False)
        if self._answered is not None and self._answered[0] == asked:
            return self._answered[1]  # asked again: other noise would cost privacy once more
        gradients, loss, forwards = self._train(plan)
        report = Report(
            round=plan.round,
            client=self.client,
            digest=self.replica.digest(),
            examples=len(self.examples),
            gradients=gradients,
            loss=loss,
            forwards=forwards,
        )
        self._answered = (asked, report)
        return report

    def warm_up(self, plan: Plan) -> None:
        """Measure again what the client's first step measured, in the plan's round.

        For a run that is resumed: the reports of a client that had taken part, and its count of
        forwards with them, are then those of a run that never stopped. Nothing else changes.
        A private client's reports do not depend on that measurement.
        """
        if self.privacy is not None:
            return
        model = self.replica.blocks.model
        batch = self.batch(plan.run_seed, plan.round, 0, plan.batch_size)
        optimizer = self._spzo(plan)
        with self.replica.local_steps():
            optimizer.step(partial(self.task.loss, model, batch))

    def batch(self, run_seed: int, round: int, step: int, size: int) -> Any:
        """The batch of a local step: examples drawn without replacement, a function of the seed."""
        chosen = draw(len(self.examples), size, batch_seed(run_seed, round, self.client, step))
        return self.task.collate([self.examples[i] for i in chosen])

    def _train(self, plan: Plan) -> tuple[Scalars, float | None, float]:
        """The plan's local steps: their gradients, mean loss, and computation."""
        steps, rows, losses, evaluations = [], [], [], 0
        optimizer = self._spzo(plan)
        before = optimizer.forwards
        with self.replica.local_steps():
            for step in range(plan.local_steps if plan.train else 0):
                loss = optimizer.step(self._closure(plan, step))
                done = optimizer.last_step
                evaluations += 0 if done is None else len(done.losses)
                if done is not None and not done.skipped:
                    steps.append(step)
                    rows.append([g for block in done.gradients for g in block])
                    losses.append(loss)
        columns = sum(plan.optimizer.directions)
        values = np.array(rows, dtype=np.float32).reshape(len(rows), columns)
        gradients = Scalars(plan.local_steps, tuple(steps), values)
        if self.privacy is not None:
            # the loss is not private; nor is what replays cost: it tells of a batch's shape
            return gradients, None, float(evaluations)
        return (
            gradients,
            float(np.float32(np.mean(losses))) if losses else None,
            float(np.float32(optimizer.forwards - before)),
        )

    def _closure(self, plan: Plan, step: int) -> Closure:
        """The loss of a local step's batch; of a private step, the losses of its examples."""
        model = self.replica.blocks.model
        if self.privacy is None:
            batch = self.batch(plan.run_seed, plan.round, step, plan.batch_size)
            return partial(self.task.loss, model, batch)
        task = cast(PrivateTask, self.task)
        chosen = self.privacy.sample(plan.batch_size)
        # an empty sample is a step like any other: an example is evaluated that does not count
        examples = task.collate([self.examples[i] for i in chosen or [0]])
        return lambda: task.losses(model, examples)[: len(chosen)]

    def _spzo(self, plan: Plan) -> SPZO:
        """The optimizer, at the plan's first step. Kept, as its first step checks the model."""
        settings = replace(plan.optimizer, lr=1.0)  # rates may change from round to round
        if self._optimizer is None or self._settings != settings:
            self._settings = settings
            self._optimizer = spzo(self.replica.blocks, plan.optimizer, privacy=self.privacy)
        everybody = plan.seeds == "shared"
        self._optimizer.step_at(
            client_seed(plan.run_seed, EVERYBODY if everybody else self.client),
            first_step(plan.round, plan.local_steps),
            plan.optimizer.learning_rates,
        )
        return self._optimizer


def spzo(
    blocks: Blocks,
    settings: OptimizerConfig,
    *,
    seed: int = 0,
    privacy: Mechanism | None = None,
) -> SPZO:
    """The optimizer that the settings describe.

    Raises:
        ValueError: a joint estimator, such as `mezo`, with a model cut into blocks, or another
            estimator with one that is not.
    """
    if estimators.find(settings.estimator).joint and len(blocks.groups) != 1:
        raise ValueError(
            f"estimator is {settings.estimator!r}, but the model is cut into"
            f" {len(blocks.groups)} blocks; pass Blocks.single(model)"
        )
    return SPZO(
        blocks,
        lr=settings.lr,
        estimator=settings.estimator,
        sides=settings.sides,
        perturbations=settings.perturbations,
        eps=settings.eps,
        seed=seed,
        rounding=settings.rounding,
        evaluation=settings.evaluation,
        privacy=privacy,
    )


def resolve(
    settings: OptimizerConfig, clients: Sequence[Client], *, batch_size: int
) -> OptimizerConfig:
    """The settings with what follows from model and dtype filled in, so that it can travel.

    Where `perturbations` is None it follows from what the blocks cost, measured by a step on the
    first client's examples. The weights stay, and so does lr="auto" (`found_rates.find`).

    Args:
        settings: as they were given.
        clients: whose examples are used, and the first one's model.
        batch_size: examples in a step.
    """
    kind = estimators.find(settings.estimator)
    client = clients[0]
    optimizer = spzo(client.replica.blocks, settings)
    if settings.perturbations is None and not kind.joint:
        with client.replica.local_steps():
            batch = client.batch(0, 0, 0, batch_size)
            optimizer.step(partial(client.task.loss, client.replica.blocks.model, batch))
        shares = optimizer.cost_shares
        assert shares is not None  # the step has measured them
        counts = kind.default_perturbations(shares, FEDERATED_FIRST, FEDERATED_MOST)
        settings = replace(settings, perturbations=counts)
    filled = replace(
        settings,
        perturbations=settings.perturbations or 1,
        sides=optimizer.sides,
        rounding=optimizer.rounding,
        at="auto",
    )
    return filled if filled.lr == "auto" else replace(filled, lr=filled.learning_rates)

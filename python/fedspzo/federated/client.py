"""A client: it takes local steps on its private examples, and reports scalars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fedspzo.evaluation.closures import Closure, read_losses
from fedspzo.federated.protocol.framing import PROBE, kind_of
from fedspzo.federated.protocol.messages import Plan, Report
from fedspzo.federated.protocol.probes import Probe, ProbeReport, StepLosses
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

from .optimizers import losses_of, probing, retake, spzo
from .partition import draw
from .protocol import download
from .rejections import DigestError
from .settings import OptimizerConfig
from .task import PrivateTask, Task


class Client:
    """Takes part in rounds with its own examples.

    Args:
        client: the client's id.
        replica: the model, at any round; clients in one process may share it, in turn.
        examples: the client's private examples.
        task: makes batches of the examples, and computes the loss.
        privacy: makes the steps differentially private (docs/privacy.md); it is made for this
            number of examples. The task has to be a `PrivateTask`. Default None: not private.

    Raises:
        ValueError: `examples` is empty; `privacy` is for another number of examples; or `task`
            lacks `losses`, which privacy needs.
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

    def answer(self, message: bytes, weights: Iterable[bytes] = ()) -> bytes:
        """Do the work that a message asks for, and return the message that answers it.

        Args:
            message: an encoded `Plan` or `Probe`.
            weights: the messages of a download, if a plan has one.

        Raises:
            ValueError: the message is damaged.
            Exception: as for `handle` and `probe`.
        """
        if kind_of(message) == PROBE:
            return self.probe(Probe.decode(message)).encode()
        return self.handle(Plan.decode(message), weights).encode()

    def probe(self, probe: Probe) -> ProbeReport:
        """Take one step at the base weights, return to them, and report what the step showed.

        Args:
            probe: the server's request.

        Raises:
            ValueError: the probe is for another client; the replica has left the base weights; the
                earlier losses are of other steps; or the step would tell losses that are private.
            DigestError: the weights differ from the server's.
        """
        if probe.client != self.client:
            raise ValueError(f"probe is for client {probe.client}, this is client {self.client}")
        if self.replica.round:
            raise ValueError(
                f"probe is for the base weights, client {self.client} is at round"
                f" {self.replica.round}; send it before the first round"
            )
        if self.privacy is not None and probe.finds_rates:
            raise ValueError(
                "probe asks for losses, and the client's steps are private; give lr a number"
            )
        self._check_digest(probe.digest, "before the first round")
        model = self.replica.blocks.model
        batch = self.batch(0, 0, probe.step, probe.batch_size)
        dtype = torch.float32

        def closure() -> Tensor:
            nonlocal dtype
            loss = read_losses(self.task.loss(model, batch), single=True)
            dtype = loss.dtype
            return loss

        optimizer = probing(self.replica.blocks, probe.optimizer, samples=probe.samples)
        with self.replica.local_steps():
            for losses in probe.earlier:
                retake(optimizer, losses)
            optimizer.step(closure)
        assert optimizer.last_step is not None
        nothing = StepLosses("float32", np.empty(0))
        return ProbeReport(
            client=self.client,
            step=probe.step,
            digest=self.replica.digest(),
            forwards=float(np.float32(optimizer.forwards)),
            cost_shares=() if probe.finds_rates else optimizer.cost_shares or (),
            losses=losses_of(optimizer.last_step, dtype) if probe.finds_rates else nothing,
        )

    def handle(self, plan: Plan, weights: Iterable[bytes] = ()) -> Report:
        """Catch up, take the plan's steps, return to the global weights, and report.

        The replica is at the plan's round afterwards, also when a step raises an error. A plan that
        is repeated gets the same report.

        Args:
            plan: the server's plan for this client.
            weights: the messages of a download, if the plan has one.

        Raises:
            ValueError: the plan is for another client; it does not follow the replica's round; or
                a download is incomplete.
            DigestError: the weights differ from the server's after catching up.
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
            if update.round
            >= self.replica.round  # a client that shares the replica may have applied it
        )
        if self.replica.round != plan.round:
            raise ValueError(
                f"plan is for round {plan.round}, client {self.client} is at round"
                f" {self.replica.round}; send the updates from there on"
            )
        self.replica.snapshot()
        self._check_digest(plan.digest, f"in round {plan.round}")
        asked = replace(plan, updates=(), download=False)
        if self._answered is not None and self._answered[0] == asked:
            return self._answered[1]  # a second answer with new noise would spend privacy again
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
        """Repeat the measurement that the client made in its first step, in the plan's round.

        A resumed run calls this for each client that has taken part. Its later reports, with their
        numbers of forwards, are then those of a run that never stopped. Nothing else changes. A
        private client's reports do not depend on the measurement, so it does nothing.
        """
        if self.privacy is not None:
            return
        model = self.replica.blocks.model
        batch = self.batch(plan.run_seed, plan.round, 0, plan.batch_size)
        optimizer = self._spzo(plan)
        with self.replica.local_steps():
            optimizer.step(partial(self.task.loss, model, batch))

    def batch(self, run_seed: int, round: int, step: int, size: int) -> Any:
        """Draw the batch of a local step, without replacement.

        The batch is a function of the arguments and the client's id.

        Args:
            run_seed: the run's seed.
            round: the round, from 0.
            step: the local step, from 0.
            size: number of examples; all are taken if the client has fewer.
        """
        chosen = draw(len(self.examples), size, batch_seed(run_seed, round, self.client, step))
        return self.task.collate([self.examples[i] for i in chosen])

    def _check_digest(self, expected: str, when: str) -> None:
        digest = self.replica.digest()
        if digest != expected:
            raise DigestError(
                f"client {self.client} has weights with digest {digest} {when}, the server's have"
                f" {expected}; start both from the same base weights, cut at the same layer"
            )

    def _train(self, plan: Plan) -> tuple[Scalars, float | None, float]:
        """Take the plan's local steps.

        Returns:
            The projected gradients, the mean loss (None without a step, or with privacy), and the
            forwards (the evaluations, with privacy).
        """
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
                    rows.append([g for block in done.followed for g in block])
                    losses.append(loss)
        columns = sum(plan.optimizer.directions)
        values = np.array(rows, dtype=np.float32).reshape(len(rows), columns)
        gradients = Scalars(plan.local_steps, tuple(steps), values)
        if self.privacy is not None:
            # the loss would leak; so would the cost of replays, which depends on the batch's shape
            return gradients, None, float(evaluations)
        return (
            gradients,
            float(np.float32(np.mean(losses))) if losses else None,
            float(np.float32(optimizer.forwards - before)),
        )

    def _closure(self, plan: Plan, step: int) -> Closure:
        """Return a closure for the loss of a local step's batch.

        The closure of a private step returns the losses of the batch's examples, (B,).
        """
        model = self.replica.blocks.model
        if self.privacy is None:
            batch = self.batch(plan.run_seed, plan.round, step, plan.batch_size)
            return partial(self.task.loss, model, batch)
        task = cast(PrivateTask, self.task)
        chosen = self.privacy.sample(plan.batch_size)
        # an empty sample must look like any other: one example is evaluated and then dropped
        examples = task.collate([self.examples[i] for i in chosen or [0]])
        return lambda: task.losses(model, examples)[: len(chosen)]

    def _spzo(self, plan: Plan) -> SPZO:
        """Return the optimizer, set to the plan's first step.

        It is kept from plan to plan, as an optimizer's first step checks and measures the model.
        """
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

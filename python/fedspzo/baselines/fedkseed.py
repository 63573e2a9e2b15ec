"""FedKSeed (arXiv 2312.06353): K scalars along a finite pool of directions give the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from fedspzo.blocks.cut import Blocks
from fedspzo.checks import check_whole
from fedspzo.federated import (
    Client,
    DigestError,
    Played,
    Rejection,
    Reply,
    Setup,
    Strategy,
    sample,
)
from fedspzo.federated.coefficients import shares
from fedspzo.federated.exchange import InProcess
from fedspzo.federated.first_steps import first_settings
from fedspzo.federated.optimizers import spzo
from fedspzo.federated.rejections import NO_FINITE_LOSS
from fedspzo.journal.records import Record

from . import mezo
from .pool import Pool, PooledWeights, Singles, probabilities
from .pool_messages import PoolPlan, PoolReport, as_pairs

POOL = 4096
"""Default size K of the pool, as published."""


class FedKSeed(Strategy):
    """Trains along a pool of K directions z_j. The weights are base - lr sum_j a_j z_j.

    A client brings its copy to the global a. It then takes `local_steps` of MeZO, each along one
    direction that is drawn from the pool, and reports pairs (j, g). The server adds w_c g to a_j
    for each pair of a client c with share w_c. With `weighted` this is FedKSeed-Pro: member j is
    drawn with a probability that is the softmax of its min-max normalized mean |g| so far.

    One record leads from the base to the current weights, however many rounds there were.

    Args:
        setup: the run's model, task, examples and settings. The model is not cut, and the
            estimator is MeZO's.
        pool: K. Default 4096, as published.
        weighted: draw members by their mean |g| (FedKSeed-Pro). Default False: uniformly.

    Raises:
        ValueError: `pool` is not a whole number above 0, or `perturbations` is not 1.
    """

    def __init__(self, setup: Setup, *, pool: int = POOL, weighted: bool = False) -> None:
        check_whole("pool", pool, 1, 2**32 - 2)
        if setup.optimizer.perturbations not in (None, 1):
            raise ValueError(
                f"perturbations is {setup.optimizer.perturbations!r}, but FedKSeed takes one"
                " direction a step; leave it out"
            )
        federation = self._federation = setup.federation
        self._pool = Pool(pool, federation.seed, setup.optimizer.stream)
        self._weights = PooledWeights(Blocks.single(setup.blocks.model), self._pool)
        self._clients = setup.clients([self._weights.replica])
        config = replace(mezo.settings(setup.optimizer), perturbations=1)
        one = replace(federation, seeds="shared")  # as for a single client
        link = InProcess(self._clients, federation.timeout)
        sizes = {client.client: len(client.examples) for client in self._clients}
        config, found, self.spent = first_settings(self._weights.replica, one, config, link, sizes)
        if found is not None:
            config = replace(config, lr=found.lr)
        self.optimizer = config
        self._weighted = weighted
        self._stepper = spzo(self._weights.replica.blocks, config, seed=self._pool.seed)
        self._known = [np.zeros(pool, np.float32) for _ in self._clients]
        self._server = PoolServer(pool, config.learning_rates[0])
        self.base = self._digest = self._weights.replica.digest()
        self.trainable_bytes = self._weights.replica.trainable_bytes

    @property
    def records(self) -> tuple[Record, ...]:
        """A single record, with a term for each member of the pool that was used."""
        return (self._pool.record(self._server.coefficients),)

    def play(self, round: int, clock: Callable[[], float]) -> Played:
        """Send each client the coefficients that it lacks, train it, and add its pairs to a."""
        clients = [self._clients[number] for number in sample(self._federation, round)]
        coefficients = self._server.coefficients
        odds = self._server.probabilities() if self._weighted else None
        reports: dict[int, PoolReport] = {}
        down = up = 0
        for client in clients:
            number = client.client
            plan = PoolPlan(round, number, self._digest, coefficients, odds)
            sent = plan.encode(self._known[number])
            answer = self._train(client, sent)
            reports[number] = PoolReport.decode(answer)
            down += len(sent)
            up += len(answer)
        sizes = {client.client: len(client.examples) for client in clients}
        lost = [client for client, report in reports.items() if report.loss is None]
        if len(lost) < len(clients):  # they changed nothing, and the others' shares add up to 1
            sizes = {client: size for client, size in sizes.items() if client not in lost}
        self._server.aggregate(reports, shares(sizes, self._federation.weighting))
        self._weights.move_to(self._server.coefficients)
        self._digest = self._weights.replica.digest()
        return Played(
            replies=tuple(
                Reply(
                    client=client.client,
                    examples=len(client.examples),
                    loss=reports[client.client].loss,
                    forwards=reports[client.client].forwards,
                    skipped=reports[client.client].skipped,
                )
                for client in clients
            ),
            clients=tuple(reports),
            bytes_down=down,
            bytes_up=up,
            digest=self._digest,
            seconds=clock(),
            rejected=tuple(Rejection(client, NO_FINITE_LOSS) for client in lost),
        )

    def _train(self, client: Client, sent: bytes) -> bytes:
        """Take a client's local steps from the plan's weights, and return to these.

        Args:
            client: the client.
            sent: the encoded plan.

        Returns:
            The encoded report.

        Raises:
            DigestError: the client's weights differ from the server's.
        """
        plan = PoolPlan.decode(sent, self._known[client.client])
        self._known[client.client] = plan.coefficients
        self._weights.move_to(plan.coefficients)
        replica, optimizer, federation = client.replica, self._stepper, self._federation
        replica.snapshot()
        if replica.digest() != plan.digest:
            raise DigestError(
                f"client {plan.client} has weights with digest {replica.digest()} in round"
                f" {plan.round}, the server's have {plan.digest}; start both from the same base"
                " weights"
            )
        members, gradients, losses = [], [], []
        before, skipped = optimizer.forwards, optimizer.skipped
        with replica.local_steps():
            for step in range(federation.local_steps):
                batch = client.batch(federation.seed, plan.round, step, federation.batch_size)
                member = self._pool.draw(plan.round, plan.client, step, plan.probabilities)
                # the optimizer's step number `member` has the member's direction
                optimizer.step_at(self._pool.seed, member)
                loss = optimizer.step(partial(client.task.loss, replica.blocks.model, batch))
                done = optimizer.last_step
                if done is not None and not done.skipped:
                    members.append(member)
                    gradients.append(done.gradients[0][0])
                    losses.append(loss)
        report = PoolReport(
            round=plan.round,
            client=plan.client,
            loss=float(np.mean(losses)) if losses else None,
            forwards=optimizer.forwards - before,
            skipped=optimizer.skipped - skipped,
            gradients=as_pairs(members, gradients),
        )
        return report.encode()


class PoolServer:
    """Accumulates the scalars of each member of the pool.

    Args:
        size: K.
        lr: learning rate.

    Attributes:
        gradients: a, the weighted sum of the reported g: float64 (K,).
    """

    def __init__(self, size: int, lr: float) -> None:
        self.gradients = np.zeros(size)
        self._lr = lr
        self._magnitudes = np.zeros(size)
        self._reports = np.ones(size)  # a history begins with one zero, as in the public code

    @property
    def coefficients(self) -> Singles:
        """Coefficients -lr a of the global weights along the members: float32 (K,)."""
        return np.asarray(-self._lr * self.gradients, dtype=np.float32)

    def probabilities(self) -> Singles:
        """Return FedKSeed-Pro's probabilities of the members, from all reports so far: (K,)."""
        return probabilities(self._magnitudes / self._reports)

    def aggregate(self, reports: dict[int, PoolReport], share: dict[int, float]) -> None:
        """Add a round's reports.

        Args:
            reports: the reports by client.
            share: the share of the update of each client that has one.
        """
        for client, weight in share.items():
            report = reports[client]
            member, value = report.gradients["member"], report.gradients["value"].astype(float)
            np.add.at(self.gradients, member, weight * value)
            np.add.at(self._magnitudes, member, np.abs(value))
            np.add.at(self._reports, member, 1)

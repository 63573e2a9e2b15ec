"""FedKSeed (arXiv 2312.06353): directions from a finite pool, weights as K scalars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np

from fedspzo.blocks.cut import Blocks
from fedspzo.checks import check_whole
from fedspzo.federated import Client, DigestError, FederationConfig, OptimizerConfig, RunResult
from fedspzo.federated.client import Task, resolve, spzo
from fedspzo.federated.found_rates import find
from fedspzo.optim.spzo import SPZO

from . import mezo
from .loop import Options, Tally, make_clients, sample, shares
from .pool import Pool, PooledWeights, Singles, probabilities
from .pool_messages import PoolPlan, PoolReport, as_pairs

POOL = 4096
"""K, as published."""


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    *,
    pool: int = POOL,
    weighted: bool = False,
    **options: Unpack[Options],
) -> RunResult:
    """Every step's direction is one of K; the weights are base - lr sum_j a_j z_j.

    A client brings its copy to the global a, takes `local_steps` of MeZO (one direction, drawn
    from the pool) and reports its (member, g) pairs. The server adds w_c g to a_j for each pair of
    client c with share w_c. `weighted` is FedKSeed-Pro: members are drawn with the softmax of the
    min-max normalised mean |g| that they have shown so far.

    For arguments and result see `loop.Method`. The result's only record leads from the base to the
    final weights, however many rounds there were.

    Args:
        pool: K.
        weighted: draw members by their mean |g| (Pro) instead of uniformly.

    Raises:
        ValueError: `pool` is no whole number above 0, or `perturbations` is not 1.
    """
    check_whole("pool", pool, 1, 2**32 - 2)
    if optimizer.perturbations not in (None, 1):
        raise ValueError(
            f"perturbations is {optimizer.perturbations!r}, but FedKSeed takes one direction a"
            " step; leave it out"
        )
    members = Pool(pool, federation.seed)
    weights = PooledWeights(Blocks.single(blocks.model), members)
    clients = make_clients(weights.replica, examples, task, federation)
    config = replace(mezo.settings(optimizer), perturbations=1)
    config = resolve(config, clients, batch_size=federation.batch_size)
    if config.lr == "auto":
        one = replace(federation, seeds="shared")  # as for a client that is alone
        config = replace(config, lr=find(config, clients, one).lr)
    stepper = spzo(weights.replica.blocks, config, seed=members.seed)
    known = [np.zeros(pool, np.float32) for _ in clients]
    server = PoolServer(pool, config.learning_rates[0])
    tally = Tally(blocks.model, weights.replica.trainable_bytes, federation.rounds, **options)
    digest = weights.replica.digest()
    tally.finish(digest, {}, {})
    for number in range(federation.rounds):
        taking_part = sample(federation, number)
        share = shares(federation, {c: len(clients[c].examples) for c in taking_part})
        coefficients, odds = server.coefficients, server.probabilities() if weighted else None
        reports = {}
        for c in taking_part:
            sent = PoolPlan(number, c, digest, coefficients, odds).encode(known[c])
            plan = PoolPlan.decode(sent, known[c])
            known[c] = plan.coefficients
            weights.move_to(plan.coefficients)
            answer = _train(clients[c], stepper, members, plan, federation).encode()
            reports[c] = PoolReport.decode(answer)
            tally.down += len(sent)
            tally.up += len(answer)
            tally.forwards += reports[c].forwards
            tally.skipped += reports[c].skipped
        server.aggregate(reports, share)
        weights.move_to(server.coefficients)
        digest = weights.replica.digest()
        tally.finish(digest, {c: report.loss for c, report in reports.items()}, share)
    final = (members.record(server.coefficients),)
    return RunResult(rounds=tuple(tally.results), optimizer=config, records=final)


def run_weighted(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    *,
    pool: int = POOL,
    **options: Unpack[Options],
) -> RunResult:
    """`run` with `weighted=True`: FedKSeed-Pro."""
    return run(blocks, task, examples, federation, optimizer, pool=pool, weighted=True, **options)


class PoolServer:
    """The accumulated scalars of each member.

    Attributes:
        gradients: float64 (K,): a, the weighted sum of the reported g.
    """

    def __init__(self, size: int, lr: float) -> None:
        self.gradients = np.zeros(size)
        self._lr = lr
        self._magnitudes = np.zeros(size)
        self._reports = np.ones(size)  # a history begins with one zero, as in the public code

    @property
    def coefficients(self) -> Singles:
        """-lr a, float32 (K,): what the global weights have along each member."""
        return np.asarray(-self._lr * self.gradients, dtype=np.float32)

    def probabilities(self) -> Singles:
        """FedKSeed-Pro's, from all reports so far."""
        return probabilities(self._magnitudes / self._reports)

    def aggregate(self, reports: dict[int, PoolReport], share: dict[int, float]) -> None:
        """Add a round's reports, each with its client's share."""
        for client, report in reports.items():
            member, value = report.gradients["member"], report.gradients["value"].astype(float)
            np.add.at(self.gradients, member, share[client] * value)
            np.add.at(self._magnitudes, member, np.abs(value))
            np.add.at(self._reports, member, 1)


def _train(
    client: Client, optimizer: SPZO, pool: Pool, plan: PoolPlan, federation: FederationConfig
) -> PoolReport:
    """A client's local steps from the plan's weights, which it leaves as they were."""
    replica = client.replica
    replica.snapshot()
    if replica.digest() != plan.digest:
        raise DigestError(
            f"client {plan.client} has weights with digest {replica.digest()} in round"
            f" {plan.round}, the server's have {plan.digest}; start both from the same base weights"
        )
    members, gradients, losses = [], [], []
    before, skipped = optimizer.forwards, optimizer.skipped
    with replica.local_steps():
        for step in range(federation.local_steps):
            batch = client.batch(federation.seed, plan.round, step, federation.batch_size)
            member = pool.draw(plan.round, plan.client, step, plan.probabilities)
            # the step of that number has the member's direction
            optimizer.step_at(pool.seed, member)
            loss = optimizer.step(partial(client.task.loss, replica.blocks.model, batch))
            done = optimizer.last_step
            if done is not None and not done.skipped:
                members.append(member)
                gradients.append(done.gradients[0][0])
                losses.append(loss)
    return PoolReport(
        round=plan.round,
        client=plan.client,
        loss=float(np.mean(losses)) if losses else None,
        forwards=optimizer.forwards - before,
        skipped=optimizer.skipped - skipped,
        gradients=as_pairs(members, gradients),
    )

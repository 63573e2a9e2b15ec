"""FedAvg (arXiv 1602.05629) with AdamW: the first-order way, backward passes and weights sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch

from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.federated import Client, FederationConfig, OptimizerConfig, RunResult
from fedspzo.federated.client import Task
from fedspzo.journal.replica import Replica

from .loop import Options, Tally, make_clients, sample, shares

STEP_FORWARDS = 3.0
"""What a step costs in forward passes, by the usual count: a backward pass is two of them."""


def run(
    blocks: Blocks,
    task: Task,
    examples: Sequence[Sequence[Any]],
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    *,
    weight_decay: float = 0.01,
    **options: Unpack[Options],
) -> RunResult:
    """Each client takes `local_steps` of AdamW and sends its change of weights; these are averaged.

    Only parameters with requires_grad=True train and travel; `lora.run` leaves just adapters. Each
    way costs the trainable weights in their dtype, without any header. A client begins every round
    with a new AdamW: moments do not travel. Published with SGD. Of `optimizer` only `lr` is used.
    Dropout is off, as for all methods here.

    For arguments and result see `loop.Method`; the result has no records: its weights are no
    function of scalars.

    Args:
        weight_decay: AdamW's, decoupled (torch's default).

    Raises:
        ValueError: `lr` is not one number.
    """
    if not isinstance(optimizer.lr, int | float):
        raise ValueError(f"lr is {optimizer.lr!r}, but AdamW takes one for all; give one number")
    whole = Blocks.single(blocks.model)
    replica = Replica(whole)
    clients = make_clients(replica, examples, task, federation)
    weights = [parameter for _, parameter in whole.groups[0]]
    tally = Tally(whole.model, replica.trainable_bytes, federation.rounds, **options)
    tally.finish(replica.digest(), {}, {})
    for number in range(federation.rounds):
        taking_part = sample(federation, number)
        share = shares(federation, {c: len(clients[c].examples) for c in taking_part})
        losses: dict[int, float | None] = {}
        start = [weight.detach().clone() for weight in weights]
        change = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
        for c in taking_part:
            adamw = torch.optim.AdamW(weights, lr=optimizer.lr, weight_decay=weight_decay)
            with replica.local_steps():
                losses[c] = _train(clients[c], adamw, federation, number, tally)
                for total, weight, old in zip(change, weights, start, strict=True):
                    total.add_(weight.detach() - old, alpha=share[c])
        for total, weight in zip(change, weights, strict=True):
            weight.detach().add_(total.to(weight.dtype))
        replica.round += 1
        tally.up += replica.trainable_bytes * len(taking_part)
        tally.down += replica.trainable_bytes * len(taking_part)
        tally.finish(replica.digest(), losses, share)
    return RunResult(rounds=tuple(tally.results), optimizer=optimizer, records=())


def _train(
    client: Client,
    adamw: torch.optim.AdamW,
    federation: FederationConfig,
    number: int,
    tally: Tally,
) -> float | None:
    """A client's local steps from the global weights; their mean loss."""
    model = client.replica.blocks.model
    losses = []
    with evaluating(model), torch.enable_grad():
        for step in range(federation.local_steps):
            batch = client.batch(federation.seed, number, step, federation.batch_size)
            loss = client.task.loss(model, batch)
            tally.forwards += STEP_FORWARDS
            if not torch.isfinite(loss):
                tally.skipped += 1
                continue
            loss.backward()
            adamw.step()
            adamw.zero_grad()
            losses.append(loss.item())
    return sum(losses) / len(losses) if losses else None

"""FedAvg (arXiv 1602.05629) with AdamW: a first-order method whose clients send weights."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.federated import Client, Played, Rejection, Reply, Setup, Strategy, sample
from fedspzo.federated.coefficients import shares
from fedspzo.federated.rejections import NO_FINITE_LOSS
from fedspzo.journal.replica import Replica

STEP_FORWARDS = 3.0
"""Cost of a step in forward passes. A backward pass is usually counted as two."""


class FedAvg(Strategy):
    """Averages the changes of weights that the clients make in `local_steps` of AdamW.

    Only parameters with requires_grad=True are trained and sent; with `lora.adapt` these are the
    adapters. Each way costs the trainable weights in their dtype; no header is counted. A client
    begins each round with a new AdamW, as moments are not sent. FedAvg was published with SGD. `lr`
    is the only setting of the optimizer that is used. Dropout is off, as for all methods here.
    There are no journal records, as the weights are not a function of scalars.

    Args:
        setup: the run's model, task, examples and settings.
        weight_decay: decoupled weight decay of AdamW. Default 0.01, as in torch.

    Raises:
        ValueError: `lr` is not one number.
    """

    def __init__(self, setup: Setup, *, weight_decay: float = 0.01) -> None:
        lr = setup.optimizer.lr
        if not isinstance(lr, int | float):
            raise ValueError(f"lr is {lr!r}, but AdamW takes one for all; give one number")
        self.optimizer = setup.optimizer
        self._lr, self._weight_decay = lr, weight_decay
        self._federation = setup.federation
        self._replica = Replica(setup.blocks)
        self._clients = setup.clients([self._replica])
        self._weights = [weight for group in setup.blocks.groups for _, weight in group]
        self.base = self._replica.digest()
        self.trainable_bytes = self._replica.trainable_bytes

    def play(self, round: int, clock: Callable[[], float]) -> Played:
        """Train each client from the global weights, and add the mean change to them."""
        clients = [self._clients[number] for number in sample(self._federation, round)]
        sizes = {client.client: len(client.examples) for client in clients}
        share = shares(sizes, self._federation.weighting)
        start = [weight.detach().clone() for weight in self._weights]
        change = [torch.zeros_like(weight, dtype=torch.float64) for weight in self._weights]
        replies = []
        for client in clients:
            with self._replica.local_steps():
                replies.append(self._train(client, round))
                for total, weight, old in zip(change, self._weights, start, strict=True):
                    total.add_(weight.detach() - old, alpha=share[client.client])
        lost = [reply.client for reply in replies if reply.loss is None]
        if 0 < len(lost) < len(clients):  # they changed nothing, and the others' shares add up to 1
            kept = 1 - sum(share[client] for client in lost)
            change = [total / kept for total in change]
        for total, weight in zip(change, self._weights, strict=True):
            weight.detach().add_(total.to(weight.dtype))
        self._replica.round += 1
        return Played(
            replies=tuple(replies),
            clients=tuple(client.client for client in clients),
            bytes_down=self.trainable_bytes * len(clients),
            bytes_up=self.trainable_bytes * len(clients),
            digest=self._replica.digest(),
            seconds=clock(),
            rejected=tuple(Rejection(client, NO_FINITE_LOSS) for client in lost),
        )

    def _train(self, client: Client, round: int) -> Reply:
        """Take a client's local steps from the global weights. The model keeps the new weights."""
        federation, model = self._federation, self._replica.blocks.model
        adamw = torch.optim.AdamW(self._weights, lr=self._lr, weight_decay=self._weight_decay)
        losses = []
        with evaluating(model), torch.enable_grad():
            for step in range(federation.local_steps):
                batch = client.batch(federation.seed, round, step, federation.batch_size)
                loss = client.task.loss(model, batch)
                if not torch.isfinite(loss):
                    continue
                loss.backward()
                adamw.step()
                adamw.zero_grad()
                losses.append(loss.item())
        return Reply(
            client=client.client,
            examples=len(client.examples),
            loss=sum(losses) / len(losses) if losses else None,
            forwards=STEP_FORWARDS * federation.local_steps,
            skipped=federation.local_steps - len(losses),
        )

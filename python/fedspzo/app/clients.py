"""Deals the training examples to the clients, or gives each its own."""

from __future__ import annotations

from collections.abc import Callable

from fedspzo.federated import dirichlet, iid

from .config import Config
from .data import Splits
from .examples import Example
from .tasks import Encoded


def deal(
    config: Config, splits: Splits, encode: Callable[[list[Example]], list[Encoded]]
) -> list[list[Encoded]]:
    """Return the encoded training examples of each client.

    Args:
        config: says how they are dealt, in [federation].
        splits: the examples. Where they say whose they are, each client has its own. Without
            training examples no client has any here.
        encode: encodes examples. It may leave some out.

    Raises:
        ValueError: they cannot be dealt so; the message names the setting.
    """
    if not splits.train:
        return [[] for _ in range(config.federation.clients)]
    if splits.owners:
        return [
            encode([one for one in splits.train if one.client == owner]) for owner in splits.owners
        ]
    train = encode(splits.train)
    federation = config.federation
    if federation.partition == "dirichlet":
        labels = [example.label for example in train]
        parts = dirichlet(labels, federation.clients, federation.alpha, federation.seed)
    else:
        parts = iid(len(train), federation.clients, federation.seed)
    return [[train[index] for index in part] for part in parts]
